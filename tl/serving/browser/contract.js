// Reads the contract from a model file: the text `tl.contract` in ModelProto.metadata_props, and checks what the page
// needs of it. tl/runtime/model_file/contract.py defines all fields.

const METADATA_PROPS = 14, KEY = 1, VALUE = 2, LENGTH_DELIMITED = 2; // Source: onnx.proto, protobuf encoding
const MAX_CONTRACT_BYTES = 64 << 20;
const SCHEMA_VERSIONS = [3, 4, 5];
const TASKS = ["classification", "multilabel", "regression", "landmarks"];

export class ModelError extends Error {}

/** Yields [field number, bytes] of the length-delimited fields of a protobuf message, without copies. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 1; shift < 2 ** 63; shift *= 128) {
      if (at >= bytes.length) throw new ModelError("The file is not an ONNX model, or is cut off.");
      const byte = bytes[at++];
      value += (byte & 127) * shift; // a Number, exact up to 2^53
      if (byte < 128) return value;
    }
    throw new ModelError("The file is not an ONNX model.");
  };
  while (at < bytes.length) {
    const tag = varint(), kind = tag % 8, number = Math.floor(tag / 8);
    if (kind === 0) varint();
    else if (kind === 1 || kind === 5) at += kind === 1 ? 8 : 4;
    else if (kind === LENGTH_DELIMITED) {
      const length = varint();
      if (at + length > bytes.length) throw new ModelError("The file is not an ONNX model, or is cut off.");
      yield [number, bytes.subarray(at, at + length)];
      at += length;
    } else throw new ModelError("The file is not an ONNX model.");
  }
}

/** The contract in the bytes of a model file. Throws `ModelError`. */
export function readContract(bytes) {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  for (const [number, entry] of fields(bytes)) {
    if (number !== METADATA_PROPS) continue;
    const pair = Object.fromEntries(fields(entry));
    if (!pair[KEY] || !pair[VALUE] || decoder.decode(pair[KEY]) !== "tl.contract") continue;
    if (pair[VALUE].length > MAX_CONTRACT_BYTES) throw new ModelError("The contract in this file is too large.");
    let contract;
    try {
      contract = JSON.parse(decoder.decode(pair[VALUE]));
    } catch {
      throw new ModelError("The contract in this file is damaged.");
    }
    check(contract);
    return contract;
  }
  throw new ModelError("This file is no model file of tl: it has no contract. tl adopt makes one of a foreign model.");
}

const isTexts = (value) => Array.isArray(value) && value.every((one) => typeof one === "string");
const isSize = (value) => Number.isInteger(value) && value > 0 && value <= 1 << 15;

function check(contract) {
  const need = (holds, message) => {
    if (!holds) throw new ModelError(message);
  };
  const version = contract?.schema_version;
  need(Number.isInteger(version), "The contract in this file is damaged.");
  need(version >= SCHEMA_VERSIONS[0], "This file was made by an old version of tl: export it again.");
  need(version <= SCHEMA_VERSIONS.at(-1), `This page does not know schema version ${version}: write it again with a newer tl.`);
  need(TASKS.includes(contract.task), "The contract in this file is damaged: unknown task.");
  need(isTexts(contract.class_names) && isTexts(contract.keypoint_names) && isTexts(contract.outputs),
    "The contract in this file is damaged: names.");
  need(namesOf(contract).length > 0, "The contract in this file is damaged: no names.");
  need(!contract.boxes, "This model was trained on boxes around animals or parts, which this page does not have. Use tl predict --boxes.");
  need((contract.landmarks?.region ?? "whole") === "whole",
    "This model needs a box around the specimen, which this page does not have. Use tl predict.");
  const preprocessing = contract.preprocessing ?? {};
  need(!preprocessing.channels && preprocessing.project == null,
    "This model reads channels or planes of stacks, which browsers do not decode. Use tl predict.");
  need(preprocessing.orientation === "exif" && preprocessing.alpha === "white",
    "This model uses pixel rules that this page does not know.");
  need(Array.isArray(preprocessing.input_hw) && preprocessing.input_hw.length === 2 && preprocessing.input_hw.every(isSize),
    "The contract in this file is damaged: input size.");
  need(["squash", "letterbox", "short_side"].includes(preprocessing.resize_mode) &&
    ["nearest", "bilinear", "bicubic", "lanczos"].includes(preprocessing.interpolation) &&
    (preprocessing.resize_mode !== "short_side" || isSize(preprocessing.short_side)) &&
    Array.isArray(preprocessing.pad_rgb) && preprocessing.pad_rgb.length === 3,
    "This model resizes images in a way that this page does not know.");
}

/** Names of what the model predicts. */
export function namesOf(contract) {
  if (contract.task === "landmarks") return contract.keypoint_names;
  if (contract.task === "regression") return contract.regression?.target_names ?? [];
  return contract.class_names;
}
