// The picture of the engine: /metrics, asked once a second while the page is seen.

const KEPT = 120; // seconds of the chart
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// Prometheus text to [{name, labels, value}].
export function parse_metrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.match(/^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/);
    if (!found) continue;
    const labels = {};
    for (const [, key, value] of (found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g))
      labels[key] = value.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

// Over the labels; undefined where there is none.
function sum(samples, name) {
  const found = samples.filter((each) => each.name === name);
  return found.length ? found.reduce((all, each) => all + each.value, 0) : undefined;
}

// Counts of each bucket, not of all below it: [{bound in seconds, count}].
function histogram(samples, name) {
  const found = samples.filter((each) => each.name === `${name}_bucket`)
    .map((each) => ({ bound: each.labels.le === "+Inf" ? Infinity : Number(each.labels.le), below: each.value }))
    .sort((a, b) => a.bound - b.bound);
  return found.map(({ bound, below }, i) => ({ bound, count: below - (i ? found[i - 1].below : 0) }));
}

// The bound below which `share` of all lie: as exact as buckets are.
function quantile(buckets, share) {
  const all = buckets.reduce((sum, each) => sum + each.count, 0);
  let below = 0;
  for (const { bound, count } of buckets) {
    below += count;
    if (all && below >= share * all) return bound;
  }
  return undefined;
}

function seconds(value) {
  if (value === Infinity) return "more than the last bucket";
  return value < 1 ? `${Number((value * 1000).toPrecision(3))} ms` : `${value} s`;
}

const round = (value) => (value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 }));

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function draw_histogram(which, title, buckets) {
  const used = buckets.filter((each) => each.count);
  const svg = $(`${which}-chart`);
  svg.replaceChildren();
  const all = used.reduce((sum, each) => sum + each.count, 0);
  if (!all) {
    $(`${which}-text`).textContent = "";
    svg.setAttribute("aria-label", `${title}: nothing measured yet`);
    return;
  }
  const from = buckets.indexOf(used[0]);
  const shown = buckets.slice(from, buckets.indexOf(used.at(-1)) + 1);
  const most = Math.max(...used.map((each) => each.count));
  const width = 240 / Math.max(shown.length, 6);
  shown.forEach(({ bound, count }, i) => {
    const height = count ? Math.max(1, (56 * count) / most) : 0;
    const bar = shape("rect", { x: i * width + 1, y: 60 - height, width: width - 2, height });
    const told = shape("title", {});
    told.textContent = `${count} up to ${seconds(bound)}`;
    bar.append(told);
    svg.append(bar);
  });
  const half = seconds(quantile(buckets, 0.5));
  const late = seconds(quantile(buckets, 0.99));
  $(`${which}-text`).textContent = `(half within ${half}, 99 % within ${late})`;
  svg.setAttribute("aria-label", `${title}: ${all} measured, half within ${half}, 99 percent within ${late}`);
}

const rates = [];

function draw_rates() {
  const svg = $("rate-chart");
  const most = Math.max(1, ...rates);
  const points = rates.map((rate, i) => `${240 - ((rates.length - 1 - i) * 240) / (KEPT - 1)},${58 - (54 * rate) / most}`);
  svg.replaceChildren(shape("polyline", { points: points.join(" ") }));
  svg.setAttribute("aria-label", `Tokens drawn per second: now ${round(rates.at(-1))}, at most ${round(most)} in the last two minutes`);
}

function draw_boundaries(samples) {
  const found = samples.filter((each) => each.name === "tenon_boundary_calls_total" && each.value);
  const rows = found.map(({ labels, value }) => {
    const row = document.createElement("tr");
    for (const text of [labels.site, labels.stage, labels.variant, value.toLocaleString("en")]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    return row;
  });
  if (rows.length) $("boundaries").replaceChildren(...rows);
}

let last = null; // {time in ms, drawn, prompt} of the last answer

function show(samples) {
  const one = (name) => sum(samples, name);
  const now = { time: performance.now(), drawn: one("vllm:generation_tokens_total"), prompt: one("tenon_engine_prompt_tokens_total") };
  $("running").textContent = `${round(one("vllm:num_requests_running"))} of ${round(one("tenon_max_batch"))}`;
  $("waiting").textContent = round(one("vllm:num_requests_waiting"));
  if (last) {
    const passed = (now.time - last.time) / 1000;
    const rate = (key) => Math.max(0, ((now[key] ?? 0) - (last[key] ?? 0)) / passed);
    $("rate").textContent = round(rate("drawn"));
    $("prompt-rate").textContent = round(rate("prompt"));
    rates.push(rate("drawn"));
    if (rates.length > KEPT) rates.shift();
    draw_rates();
  }
  last = now;
  const asked = one("vllm:prefix_cache_queries_total");
  const hits = one("vllm:prefix_cache_hits_total");
  $("hits").textContent = asked ? `${((100 * hits) / asked).toFixed(1)} %` : "–";
  $("kept").textContent = `${round(one("tenon_prefix_blocks"))} and ${round(one("tenon_prefix_states"))}`;
  $("preempted").textContent = round(one("vllm:num_preemptions_total"));
  const steps = one("tenon_engine_steps_total");
  $("replayed").textContent = steps ? `${((100 * one("tenon_engine_replayed_steps_total")) / steps).toFixed(0)} %` : "–";
  draw_histogram("first", "Time to the first token", histogram(samples, "vllm:time_to_first_token_seconds"));
  draw_histogram("between", "Time between tokens", histogram(samples, "vllm:inter_token_latency_seconds"));
  draw_boundaries(samples);
  const healthy = one("tenon_healthy") === 1;
  say_state(healthy ? "Alive." : "The engine makes no progress, or the server ends: see /health.");
}

// A screen reader says a status when it changes: only then is it written.
function say_state(text) {
  if ($("engine-state").textContent !== text) $("engine-state").textContent = text;
}

async function look() {
  if (!document.hidden) {
    try {
      const answer = await fetch("metrics", { signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      show(parse_metrics(await answer.text()));
    } catch (failed) {
      last = null;
      say_state(`No numbers: ${failed.message}`);
    }
  }
  setTimeout(look, 1000);
}

export function watch_engine() {
  look();
}
