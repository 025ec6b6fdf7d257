// Runs the model file, in a thread of its own: opens it, tests it with its golden samples, predicts images.

import * as ort from "./ort/ort.wasm.min.js";
import { ModelError, readContract } from "./contract.js";
import { decide, infoOf } from "./decide.js";
import { decode } from "./decode.js";
import { drawHeat } from "./heat.js";
import { place, toInput } from "./resize.js";

ort.env.wasm.numThreads = 1; // several would need headers that plain web servers do not send
ort.env.wasm.wasmPaths = Object.fromEntries(
  [["mjs", "js"], ["wasm", "wasm"]].map(([kind, suffix]) => [kind, new URL(`./ort/ort-wasm-simd-threaded.${suffix}`, import.meta.url).href]),
);
ort.env.logLevel = "error";

let model = null;

async function open({ bytes, name }) {
  const contract = readContract(new Uint8Array(bytes));
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  } catch (error) {
    throw new ModelError(`This browser cannot run the model: ${error.message}`, { cause: error });
  }
  const test = await selfTest(session, contract);
  await model?.session.release();
  model = { session, contract, info: infoOf(contract, name.replace(/\.onnx$/i, "")) };
  return { info: model.info, test };
}

/** Run one image, {pixels, width, height}: output name -> values. */
async function run(session, contract, image, further = []) {
  const tensor = new ort.Tensor("uint8", image.pixels, [1, image.height, image.width, 3]);
  const wanted = contract.outputs.filter((name) => name !== "embedding" && (name !== "cam" || further.includes("cam")));
  const found = await session.run({ images: tensor }, wanted);
  return Object.fromEntries(Object.entries(found).map(([name, { data, dims }]) => [name, { data, dims }]));
}

/** Compare with what the exporter stored. Throws `ModelError` if this browser computes something else. */
async function selfTest(session, contract) {
  const { samples, tolerance } = contract.golden, allowed = tolerance[contract.precision];
  let largest = 0;
  for (const { png, expected } of samples) {
    const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
    const outputs = await run(session, contract, await decode(new Blob([bytes], { type: "image/png" })));
    const { data } = outputs[{ landmarks: "keypoints", regression: "values" }[contract.task] ?? "probabilities"];
    expected.forEach((value, n) => {
      const difference = Math.abs(data[n] - value) / (contract.regression?.std[n] ?? 1);
      largest = Number.isFinite(difference) ? Math.max(largest, difference) : Infinity;
    });
  }
  if (samples.length > 0 && !(largest <= allowed)) {
    throw new ModelError(
      `The self-test failed: this browser's results differ by ${largest.toPrecision(2)}, allowed ${allowed}. ` +
      "A privacy setting may change the pixels of images (fingerprinting protection): allow it for this page, or use another browser.",
    );
  }
  return { samples: samples.length, largest };
}

async function predict({ file, name, choice }) {
  if (!model) throw new ModelError("No model is open.");
  const { session, contract } = model, { preprocessing } = contract;
  let image, outputs, placed;
  try {
    image = await decode(file);
    const isAnySize = preprocessing.resized_by === "graph";
    const input = isAnySize ? image : toInput(image, preprocessing);
    placed = isAnySize ? { width: image.width, height: image.height, left: 0, top: 0 } : input.placed;
    outputs = await run(session, contract, input, choice.explain ? ["cam"] : []);
  } catch (error) {
    return { path: name, error: error.message };
  }
  const result = { path: name, ...decide(contract, outputs, { image, placed }, choice) };
  if (choice.explain && outputs.cam) {
    result.overlay = await drawHeat(image, outputs, place(image.width, image.height, preprocessing), preprocessing);
  }
  return result;
}

const jobs = { open, predict };

self.addEventListener("message", async ({ data }) => {
  try {
    self.postMessage({ call: data.call, answer: await jobs[data.job](data) });
  } catch (error) {
    self.postMessage({ call: data.call, error: error.message });
  }
});
