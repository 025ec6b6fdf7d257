// Predict images: node predict.mjs model.onnx photo.jpg ... Prints one JSON object per image.
// The file comes from `tl export --input any-size`.
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";
import { readContract } from "./contract.mjs";
import { readRgb } from "./images.mjs";

const [model, ...paths] = process.argv.slice(2);
if (paths.length === 0) {
  console.error("usage: node predict.mjs model.onnx photo.jpg ...");
  process.exit(2);
}
const bytes = readFileSync(model);
const contract = readContract(bytes);
const session = await ort.InferenceSession.create(bytes, { executionProviders: ["cpu"] });
for (const path of paths) {
  const { data, width, height } = readRgb(path);
  const images = new ort.Tensor("uint8", data, [1, height, width, 3]);
  const { probabilities } = await session.run({ images }, ["probabilities"]);
  const values = Array.from(probabilities.data);
  const label = contract.class_names[values.indexOf(Math.max(...values))];
  console.log(JSON.stringify({ path, label, probabilities: values }));
}
