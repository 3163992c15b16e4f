// Errors that are the browser's fault and say nothing about the model; nailtool knows them by this prefix.
const PREFIX = 'browser trouble: ';

export class BrowserTrouble extends Error {
  constructor(message) {
    super(PREFIX + message);
  }
}

// GPU backends report failed shaders, textures and devices as plain errors.
export function blameBrowser(error) {
  const message = error?.message ?? String(error);
  const gpu = /shader|webgl|webgpu|texture|framebuffer|gpu|context lost|device (is|was) lost/i.test(message);
  return gpu && !message.startsWith(PREFIX) ? new BrowserTrouble(message) : error;
}
