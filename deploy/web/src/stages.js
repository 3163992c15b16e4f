// Pre- and post-processing as nailtool's parity check calls them: base64 in, base64 and plain values out.
import { fromBase64, toBase64 } from './base64.js';
import { findNails, maskOnPhoto } from './postprocess.js';
import { decodePhoto, letterbox, placePhoto, preprocess, preprocessByCanvas, toTensor } from './preprocess.js';

const asFloats = (text) => new Float32Array(fromBase64(text).buffer);

const preprocessing = {
  // A file -> its RGBA bytes, upright.
  async decode(file) {
    const { data, height, width, reader } = await decodePhoto(fromBase64(file));
    return { data: toBase64(data), height, width, reader };
  },
  // RGB bytes of a photo -> RGB bytes of the input's size.
  resize: (rgb, height, width, inputHeight, inputWidth) =>
    toBase64(letterbox(fromBase64(rgb), height, width, inputHeight, inputWidth)),
  // RGB bytes of the input's size -> the float32 values the model is given.
  normalise: (rgb) => toBase64(toTensor(fromBase64(rgb))),
  // A file -> the float32 values the model is given.
  run: async (file, inputHeight, inputWidth) => toBase64(await preprocess(fromBase64(file), inputHeight, inputWidth)),
  runByCanvas: async (file, inputHeight, inputWidth, quality) =>
    toBase64(await preprocessByCanvas(fromBase64(file), inputHeight, inputWidth, quality)),
};

const postprocessing = {
  findNails: ({ fgbg, finger, direction }, height, width, minArea, layout) =>
    findNails({ fgbg: asFloats(fgbg), finger: asFloats(finger), direction: asFloats(direction) }, height, width,
      { minArea, layout }),
  maskOnPhoto: (fgbg, height, width, photoHeight, photoWidth, outputStride, layout) => {
    const box = placePhoto(photoHeight, photoWidth, height * outputStride, width * outputStride);
    return toBase64(maskOnPhoto(asFloats(fgbg), height, width, box, outputStride, layout));
  },
};

function pick(steps, name) {
  if (!Object.hasOwn(steps, name)) throw new Error(`no step '${name}'; there are ${Object.keys(steps).join(', ')}`);
  return steps[name];
}

export const runPreprocessing = async (step, ...given) => pick(preprocessing, step)(...given);
export const runPostprocessing = async (step, ...given) => pick(postprocessing, step)(...given);
