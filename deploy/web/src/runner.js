// The page nailtool drives: what it may call, under one name.
import { startBackend } from './backends.js';
import { loadModel, runImage, timeLoad, timeRuns } from './model.js';
import { postprocessStage as postprocess, preprocessStage as preprocess } from './stages.js';

window.nailtool = { startBackend, loadModel, runImage, timeRuns, timeLoad, preprocess, postprocess };
