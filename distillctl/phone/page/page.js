// Fetch the graph, run it in every way this browser offers, compare its answers with those on record, show what was
// found, and send it back. No framework; everything that is shown is set as text.

const byId = (id) => document.getElementById(id);
const say = (id, text) => { byId(id).textContent = text; };

const RUNTIMES = {
  wasm: { module: "ort.wasm.min.mjs", binary: "ort-wasm-simd-threaded.wasm" },
  webgpu: { module: "ort.webgpu.min.mjs", binary: "ort-wasm-simd-threaded.asyncify.wasm" },
};

let hidden = document.hidden;
document.addEventListener("visibilitychange", () => { hidden ||= document.hidden; });

main().catch((error) => {
  say("headline", "That did not work");
  say("lead", String(error?.message ?? error));
  byId("progress").hidden = byId("doing").hidden = true;
  document.body.dataset.state = "failed";
});

async function main() {
  await keepAwake();
  const gpu = Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
  const device = await describe(gpu);
  const { session, ...task } = await post("session", device);
  say("title", task.title);
  say("device", words(device));
  say("headline", "Measuring on this device");

  const began = performance.now();
  const graph = await fetched("model.onnx", (share) => step("Fetching the model", 0.25 * share));
  const download_ms = performance.now() - began;

  const ways = configurations(device);
  const measurements = [], failures = [];
  for (const [index, way] of ways.entries()) {
    const place = (share) => 0.25 + 0.75 * (index + share) / ways.length;
    step(`Loading the model: ${name(way)}`, place(0));
    try {
      const { module, binary } = RUNTIMES[way.backend];
      const wasm = await fetched(binary, () => {});
      measurements.push(await inWorker({ ...way, module, wasm, graph, task }, (share) =>
        step(`Timing ${task.rows.length} inputs: ${name(way)}`, place(share))));
    } catch (error) {
      failures.push({ ...way, error: String(error?.message ?? error).slice(0, 2000) });
    }
  }

  step("Sending the results back", 1);
  const results = { download_ms, timer_ms: clockStep(), hidden, measurements, failures };
  await post(`results/${session}`, results);
  if (!measurements.length) throw new Error(`The model could not be run here. ${failures[0].error}`);
  show(task, results);
  byId("progress").hidden = byId("doing").hidden = true;
  document.body.dataset.state = "done";
}

// ── what this browser is and can do ────────────────────────────────────────────────────────────────

async function describe(gpu) {
  const high = await navigator.userAgentData?.getHighEntropyValues(["model", "platformVersion"]).catch(() => null);
  return {
    user_agent: navigator.userAgent.slice(0, 2000),
    model: high?.model || null,
    platform: high?.platform || null,
    platform_version: high?.platformVersion || null,
    cores: navigator.hardwareConcurrency ?? null,
    memory_gb: navigator.deviceMemory ?? null,
    screen: { width: screen.width, height: screen.height, pixel_ratio: window.devicePixelRatio },
    isolated: self.crossOriginIsolated === true,
    gpu,
  };
}

function words(device) {
  const { width, height, pixel_ratio } = device.screen;
  const parts = [device.model, device.cores && `${device.cores} cores`, device.memory_gb && `${device.memory_gb} GB`,
    `screen ${Math.round(width * pixel_ratio)} × ${Math.round(height * pixel_ratio)} pixels`];
  return parts.filter(Boolean).join(" · ");
}

// One thread is what the computer's own figures are measured with; more are there only on an isolated page.
function configurations(device) {
  const found = [{ backend: "wasm", threads: 1 }];
  const threads = Math.min(4, device.cores ?? 1);
  if (device.isolated && threads > 1) found.push({ backend: "wasm", threads });
  if (device.gpu) found.push({ backend: "webgpu", threads: 1 });
  return found;
}

const name = ({ backend, threads }) =>
  backend === "webgpu" ? "graphics chip" : threads === 1 ? "1 thread" : `${threads} threads`;

async function keepAwake() {
  try { await navigator.wakeLock?.request("screen"); } catch { /* only a comfort */ }
}

function clockStep() {
  let least = Infinity;
  for (let count = 0; count < 20; count += 1) {
    const begin = performance.now();
    let now = begin;
    while (now === begin) now = performance.now();
    least = Math.min(least, now - begin);
  }
  return least;
}

// ── the server, the worker ─────────────────────────────────────────────────────────────────────────

async function post(path, value) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value),
  });
  if (!answer.ok) throw new Error(`The computer did not take it: ${await answer.text()}`);
  return answer.json();
}

async function fetched(path, advance) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
  const total = Number(answer.headers.get("Content-Length"));
  const bytes = new Uint8Array(total);
  const reader = answer.body.getReader();
  let at = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    bytes.set(part.value, at);
    at += part.value.length;
    advance(at / total);
  }
  if (at !== total) throw new Error(`${path} broke off`);
  return bytes.buffer;
}

function inWorker(job, advance) {
  return new Promise((resolve, reject) => {
    const worker = new Worker("measure.js", { type: "module" });
    const end = (settle, value) => { worker.terminate(); settle(value); };
    worker.onerror = (event) => end(reject, new Error(event.message || "the worker could not be started"));
    worker.onmessage = ({ data }) => {
      if (data.done) end(resolve, data.done);
      else if (data.error) end(reject, new Error(data.error));
      else advance(data.progress);
    };
    worker.postMessage(job);
  });
}

// ── what is shown ──────────────────────────────────────────────────────────────────────────────────

function step(text, share) {
  const percent = Math.round(100 * share);
  say("doing", text);
  byId("bar").style.width = `${percent}%`;
  byId("progress").setAttribute("aria-valuenow", percent);
}

function show(task, { measurements, failures, hidden }) {
  const found = measurements.map((one) => ({ ...one, ...compared(task, one.logits),
    p50: percentile(one.milliseconds, 0.5), p90: percentile(one.milliseconds, 0.9) }));
  const right = found.filter((one) => one.same);
  const best = (right.length ? right : found).reduce((a, b) => (b.p50 < a.p50 ? b : a));
  say("headline", best.same ? "Done" : "Done, but the answers differ");
  say("lead", `The model ran on this device (${name(best)}). The figures are stored on the computer that shows the code.`);
  say("typical", duration(best.p50));
  say("slow", duration(best.p90));
  say("first", duration(best.first_ms));
  say("load", duration(best.load_ms));
  const worst = found.reduce((a, b) => (b.equal < a.equal ? b : a));
  say("same", `${worst.equal} of ${task.rows.length}`);
  if (worst.equal < task.rows.length) say("same-what", "answers as recorded; the others are near ties");
  if (found.some((one) => !one.same)) {
    byId("same").parentElement.classList.add("wrong");
    say("same-what", `answers as recorded; a probability is off by ${Math.max(...found.map((one) => one.furthest)).toFixed(3)}`);
  }
  for (const one of found) line(name(one), duration(one.p50), duration(one.p90), duration(one.load_ms));
  for (const one of failures) line(name(one), "–", "–", "–");
  say("notes", [
    ...failures.map((one) => `${name(one)} did not work: ${one.error}`),
    hidden ? "The page was in the background for a while, so the times may be too long." : "",
  ].join(" "));
  for (const [index, text] of task.texts.entries()) {
    const item = document.createElement("li"), answer = document.createElement("strong");
    const logits = best.logits[index];
    answer.textContent = task.labels[logits.indexOf(Math.max(...logits))];
    item.append(text, answer);
    byId("examples").append(item);
  }
  byId("result").hidden = false;
}

function line(...cells) {
  const row = document.createElement("tr");
  cells.forEach((text, index) => {
    const cell = document.createElement(index ? "td" : "th");
    if (!index) cell.scope = "row";
    cell.textContent = text;
    row.append(cell);
  });
  byId("ways").append(row);
}

function compared(task, logits) {
  let equal = 0, furthest = 0;
  task.probabilities.forEach((recorded, index) => {
    const row = logits[index], most = Math.max(...row);
    const weights = row.map((value) => Math.exp(value - most)), sum = weights.reduce((a, b) => a + b);
    equal += row.indexOf(most) === recorded.indexOf(Math.max(...recorded));
    weights.forEach((weight, label) => { furthest = Math.max(furthest, Math.abs(weight / sum - recorded[label])); });
  });
  return { equal, furthest, same: furthest <= task.tolerance };
}

// As numpy's: between the two nearest, in proportion.
function percentile(values, share) {
  const sorted = [...values].sort((a, b) => a - b), at = share * (sorted.length - 1), low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

function duration(ms) {
  const [value, unit] = ms >= 1000 ? [ms / 1000, "s"] : [ms, "ms"];
  return `${value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)} ${unit}`;
}
