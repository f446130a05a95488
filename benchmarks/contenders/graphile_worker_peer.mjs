// The steps of graphile-worker, run in the folder that it is installed in.
//
// Settings: those that its documentation gives for performance, a local queue of 500 jobs, 24 jobs at a time, and
// completions in batches. It deletes the jobs that succeed; nobody can ask later how they ended.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.cwd() + "/package.json");
const { run, makeWorkerUtils, Logger } = await import(pathToFileURL(require.resolve("graphile-worker")).href);

const options = JSON.parse(process.argv[2]);
const { host, port, user, dbname } = options.where;
const connectionString =
  `postgres://${encodeURIComponent(user)}@/${encodeURIComponent(dbname)}` +
  `?host=${encodeURIComponent(host)}&port=${port}`;
const WARM_UP = 20;
const PAUSE = 20;
const REPORT = 100;
// 100 bytes of JSON text.
const PAYLOAD = { data: "x".repeat(89) };

const problems = [];
const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") problems.push(message);
});
const preset = {
  worker: {
    connectionString,
    concurrentJobs: 24,
    maxPoolSize: 25,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger,
  },
};

// The clock of the other contenders: CLOCK_MONOTONIC, in seconds.
const now = () => Number(process.hrtime.bigint()) / 1e9;
const cpu = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function makeMeter({ jobs = 0, every = 0, limit = 600 }) {
  const meter = { handled: 0, started: now(), marks: [], next: every || jobs || -1 };
  meter.done = new Promise((resolve) => (meter.resolve = resolve));
  meter.handle = () => {
    if (++meter.handled === meter.next) {
      const at = now();
      if (every) {
        meter.marks.push(at);
        meter.next += every;
      }
      if ((jobs && meter.handled >= jobs) || at - meter.started > limit) meter.resolve();
    }
  };
  meter.figures = () => ({
    handled: meter.handled,
    started: meter.started,
    marks: meter.marks,
    problems: problems.slice(0, 5),
    max_rss_mb: process.resourceUsage().maxRSS / 1024,
  });
  return meter;
}

const steps = {
  async drain() {
    const meter = makeMeter(options);
    meter.started = now();
    const before = cpu();
    const runner = await run({ preset, taskList: { noop: async () => meter.handle() }, noHandleSignals: true });
    await meter.done;
    await runner.stop();
    return { seconds: now() - meter.started, cpu_seconds: cpu() - before, ...meter.figures() };
  },

  async fill() {
    const utils = await makeWorkerUtils({ connectionString, logger });
    await utils.migrate();
    const started = now();
    for (let at = 0; at < options.jobs; at += options.chunk) {
      const size = Math.min(options.chunk, options.jobs - at);
      await utils.addJobs(Array.from({ length: size }, () => ({ identifier: "noop", payload: PAYLOAD })));
    }
    const seconds = now() - started;
    await utils.release();
    return { seconds };
  },

  async latency() {
    const utils = await makeWorkerUtils({ connectionString, logger });
    await utils.migrate();
    let startedAt = 0;
    let started = () => {};
    const task = async () => {
      startedAt = now();
      started();
    };
    const runner = await run({ preset, taskList: { noop: task }, noHandleSignals: true });
    await sleep(1000);
    const delays_ms = [];
    for (let number = 0; number < WARM_UP + options.jobs; number++) {
      await sleep(PAUSE);
      const ran = new Promise((resolve) => (started = resolve));
      const asked = now();
      await utils.addJob("noop", PAYLOAD);
      await ran;
      if (number >= WARM_UP) delays_ms.push((startedAt - asked) * 1000);
    }
    await runner.stop();
    await utils.release();
    return { delays_ms };
  },

  async serve() {
    const meter = makeMeter({});
    const runner = await run({ preset, taskList: { noop: async () => meter.handle() }, noHandleSignals: true });
    await sleep(1000);
    const stopped = new Promise((resolve) => process.on("SIGTERM", resolve));
    console.log(JSON.stringify({ ready: true }));
    let told = 0;
    const report = setInterval(() => {
      if (meter.handled !== told) {
        told = meter.handled;
        console.log(JSON.stringify({ handled: told }));
      }
    }, REPORT);
    await stopped;
    clearInterval(report);
    await runner.stop();
    return { cpu_seconds: cpu(), ...meter.figures() };
  },
};

console.log(JSON.stringify(await steps[options.step]()));
process.exit(0);
