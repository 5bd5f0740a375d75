// CPython, compiled to WebAssembly, with this repository and some folders of packages to import from.
import { fileURLToPath } from "node:url";
import { loadPyodide } from "pyodide";

const repository = fileURLToPath(new URL("../..", import.meta.url));

export async function startPython(packages) {
  const python = await loadPyodide();
  const folders = [repository, ...packages].map((folder, number) => {
    const place = `/folders/${number}`;
    python.FS.mkdirTree(place);
    python.FS.mount(python.FS.filesystems.NODEFS, { root: folder }, place);
    return place;
  });
  const sys = python.pyimport("sys");
  sys.dont_write_bytecode = true;
  folders.slice(1).forEach((folder) => sys.path.append(folder));
  sys.path.insert(0, folders[0]); // before Pyodide's own
  python.FS.chdir(folders[0]);
  return python;
}
