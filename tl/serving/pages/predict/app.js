// The page of `tl serve`: predictions by the server. A folder written by `tl inspect --web` has another app.js.

import { Server } from "./server.js";
import { start } from "./workbench.js";

start(new Server());
