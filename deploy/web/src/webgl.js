// The WebGL backend, loaded only by pages that ask for it.
import '@tensorflow/tfjs-backend-webgl';
