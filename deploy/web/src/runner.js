// The page nailtool drives: what it may call, under one name.
import { startBackend } from './backends.js';
import { loadModel, runImage, timeLoad, timeRuns } from './model.js';

window.nailtool = { startBackend, loadModel, runImage, timeRuns, timeLoad };
