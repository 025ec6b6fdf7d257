// Read the contract of a model file, which onnxruntime-node does not show: the value of metadata_props["tl.contract"].
// An ONNX file is a protobuf message; metadata_props is field 14 of ModelProto, with key = 1 and value = 2.
export function readContract(bytes) {
  for (const [field, entry] of fields(bytes)) {
    if (field !== 14) continue;
    const [key, value] = [1, 2].map((wanted) => [...fields(entry)].find(([number]) => number === wanted)?.[1]);
    if (key?.toString() === "tl.contract") return JSON.parse(value.toString());
  }
  throw new Error("not a tl model file: it has no tl.contract");
}

// Yields the number and the bytes of each length-delimited field, and skips the others.
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 2) {
      const size = varint();
      yield [Math.floor(tag / 8), bytes.subarray(at, at + size)];
      at += size;
    } else if (kind === 0) varint();
    else at += kind === 1 ? 8 : 4;
  }
}
