// Runs tests.edge.suite under Pyodide: node suite.mjs '["/folder/of/packages"]' argument...
import { startPython } from "./python.mjs";

const [packages, ...options] = process.argv.slice(2);
const python = await startPython(JSON.parse(packages));
const suite = python.pyimport("tests.edge.suite");
const code = suite.run_pytest(python.toPy(options));
await suite.run_with_promises();
process.exit(code); // now, because Pyodide leaves timers that were cancelled running to their end
