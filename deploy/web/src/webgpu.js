// The WebGPU backend, loaded only by pages that ask for it.
import '@tensorflow/tfjs-backend-webgpu';
