// The page that runs a model in the browser. It takes the place of the app.js of `tl serve`.

import { LocalModel } from "./local.js";
import { start } from "./workbench.js";

start(new LocalModel());
