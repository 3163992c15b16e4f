// The page nailtool drives: what it may call, under one name.
import { startBackend } from './backends.js';
import { loadModel, runImage, timeLoad, timeRuns } from './model.js';
import { runPostprocessing as postprocess, runPreprocessing as preprocess } from './stages.js';

window.nailtool = { startBackend, loadModel, runImage, timeRuns, timeLoad, preprocess, postprocess };
