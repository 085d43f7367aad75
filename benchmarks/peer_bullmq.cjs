// No-op jobs for BullMQ on the server PEER_URL: `node peer_bullmq.cjs enqueue 4000`, or `node peer_bullmq.cjs work`.
// It runs with NODE_PATH=.venv-peers/node/node_modules, where only BullMQ is installed.
const { Queue, Worker } = require("bullmq");

const { hostname, port, username, password } = new URL(process.env.PEER_URL);
const connection = { host: hostname, port: Number(port), username, password, maxRetriesPerRequest: null };
const SLOTS = 10, CHUNK = 500;

async function enqueue(number) {
  const queue = new Queue("bench", { connection });
  for (let done = 0; done < number; done += CHUNK)
    await queue.addBulk(Array.from({ length: Math.min(CHUNK, number - done) }, () => ({ name: "nothing", data: {} })));
  await queue.close();
}

const [verb, number] = process.argv.slice(2);
if (verb === "enqueue") enqueue(Number(number));
else new Worker("bench", async () => 1, { connection, concurrency: SLOTS });
