// examples/cloudflare_worker.py, served over HTTP, with Cloudflare's D1 behind it; what else Cloudflare does is here:
// node worker.mjs '{"port": ..., "d1": ..., "folder": ..., "packages": [...], "variables": {...}}'
import http from "node:http";
import { buffer } from "node:stream/consumers";
import { Miniflare } from "miniflare";
import { startPython } from "./python.mjs";

const { port, d1, folder, packages, variables } = JSON.parse(process.argv[2]);
const host = "127.0.0.1";

// The database in workerd, which runs no Python without a download, behind a Worker that hands statements on.
const flare = new Miniflare({
  host,
  port: d1,
  cf: false,
  modules: true,
  d1Databases: ["DB"],
  d1Persist: folder,
  script: `export default {
    async fetch(request, { DB }) {
      try {
        const statements = (await request.json()).map(([sql, ...values]) => DB.prepare(sql).bind(...values));
        return Response.json(await DB.batch(statements));
      } catch (error) {
        return new Response(error.message, { status: 500 });
      }
    },
  }`,
});
await flare.ready;

class D1PreparedStatement {
  constructor(sql, values) {
    this.statement = [sql, ...values];
  }
  bind(...values) {
    return new D1PreparedStatement(this.statement[0], values);
  }
}

class D1Database {
  prepare(sql) {
    return new D1PreparedStatement(sql, []);
  }
  async batch(prepared) {
    const body = JSON.stringify(prepared.map(({ statement }) => statement));
    const answer = await fetch(`http://${host}:${d1}`, { method: "POST", body });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
}

class Fetcher {
  fetch = (...request) => fetch(...request);
}

const python = await startPython(packages);
const worker = python.pyimport("tests.edge.workerd").load({ ...variables, DB: new D1Database(), SELF: new Fetcher() });

async function answer({ method, url, headers }, body) {
  if (url === "/cdn-cgi/handler/scheduled") {
    await worker.scheduled();
    return new Response("ok");
  }
  return worker.fetch(new Request(`http://${host}:${port}${url}`, { method, headers, body: body.length ? body : null }));
}

const server = http.createServer(async (incoming, outgoing) => {
  try {
    const body = await buffer(incoming);
    const response = await answer(incoming, body);
    console.log(incoming.method, incoming.url, response.status, String(body));
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    for await (const piece of response.body) outgoing.write(piece);
  } catch (error) {
    console.error(error);
    outgoing.writeHead(500);
  }
  outgoing.end();
});
server.listen(port, host);

process.on("SIGTERM", async () => {
  await flare.dispose();
  process.exit();
});
