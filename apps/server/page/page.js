// The chat: one conversation, streamed from /v1/chat/completions. Text of the model and of people
// becomes text nodes alone (markdown.js).
import { watch_engine } from "./engine.js";
import { markdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["temperature", "top_p", "max_tokens", "thinking", "system"];
const STORE = "tenon.settings";

let model = "";
let messages = []; // {role, content}, as the API takes them; the system prompt is not among them
let running = null; // the AbortController of the present answer

// ---- settings ----

// Storage may be forbidden; then settings live as long as the page.
function stored(storage, name, value) {
  try {
    if (value !== undefined) storage.setItem(name, value);
    return storage.getItem(name);
  } catch {
    return null;
  }
}

function load_settings() {
  let found = {};
  try {
    found = JSON.parse(stored(localStorage, STORE) ?? "{}") ?? {};
  } catch {
    // what cannot be read is left out
  }
  for (const name of SETTINGS) if (typeof found[name] === "string") $(name).value = found[name];
  $("key").value = stored(sessionStorage, "tenon.key") ?? "";
}

function save_settings() {
  const values = Object.fromEntries(SETTINGS.map((name) => [name, $(name).value]));
  stored(localStorage, STORE, JSON.stringify(values));
  stored(sessionStorage, "tenon.key", $("key").value);
}

function fields() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

// What is not filled in is left to the server.
function request_body() {
  const system = $("system").value.trim();
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (model) body.model = model;
  for (const name of ["temperature", "top_p", "max_tokens"]) {
    const text = $(name).value;
    if (text === "") continue;
    if (!$(name).checkValidity()) throw new Error(`${$(name).labels[0].textContent}: ${$(name).validationMessage}`);
    body[name] = Number(text);
  }
  if ($("thinking").value) body.enable_thinking = $("thinking").value === "on";
  return body;
}

// ---- what is said of errors ----

function tell_trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
}

async function refusal(answer) {
  let said = "";
  try {
    said = (await answer.json()).error.message;
  } catch {
    // a proxy in between may answer with anything
  }
  if (answer.status === 401) {
    $("settings").open = true;
    $("key").focus();
    return `The server asks for an API key: ${said}`;
  }
  return said || `The server answered with status ${answer.status}.`;
}

// ---- turns ----

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function show_turn(role, ...children) {
  const node = make("li", { class: role }, make("span", { class: "who" }, role === "user" ? "You" : "Model"), ...children);
  $("turns").append(node);
  $("empty").hidden = true;
  return node;
}

function set_running(controller) {
  running = controller;
  $("send").disabled = running !== null;
  $("stop").disabled = running === null;
  $("again").disabled = running !== null || !messages.some((each) => each.role === "user");
}

// What is seen of one answer. Drawn anew when text has come, but not more often than lets the page
// breathe: a long answer takes longer to draw.
class AnswerView {
  constructor(began) {
    this.text = "";
    this.thoughts = "";
    this.began = began; // when it was asked for, in ms
    this.summary = make("summary");
    this.thought_text = make("div");
    this.details = make("details", { class: "thoughts", hidden: "" }, this.summary, this.thought_text);
    this.body = make("div", { class: "text" });
    this.note = make("p", { class: "note" });
    this.node = show_turn("model", this.details, this.body, this.note);
    this.node.setAttribute("aria-busy", "true");
    this.timer = null;
    this.pause = 30; // ms
    this.follow();
  }
  add(delta) {
    if (!this.first && (delta.content || delta.reasoning_content)) this.first = performance.now();
    this.thoughts += delta.reasoning_content ?? "";
    this.text += delta.content ?? "";
    this.timer ??= setTimeout(() => {
      this.timer = null;
      const from = performance.now();
      this.draw();
      this.pause = Math.max(30, 4 * (performance.now() - from));
    }, this.pause);
  }
  draw() {
    // Who has scrolled up reads: stay there.
    const turns = $("turns");
    const at_end = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 60;
    if (this.thoughts) {
      this.details.hidden = false;
      this.summary.textContent = this.text || !this.node.hasAttribute("aria-busy") ? "Thoughts" : "Thinking…";
      this.thought_text.textContent = this.thoughts;
    }
    this.body.replaceChildren(...markdown(this.text));
    if (at_end) this.follow();
  }
  follow() {
    $("turns").scrollTop = $("turns").scrollHeight;
  }
  end(why, usage) {
    clearTimeout(this.timer);
    this.node.removeAttribute("aria-busy");
    const passed = (performance.now() - this.began) / 1000;
    const told = [why];
    if (this.first) told.push(`first token after ${((this.first - this.began) / 1000).toFixed(2)} s`);
    if (usage) told.push(`${usage.completion_tokens} tokens for a prompt of ${usage.prompt_tokens}`);
    told.push(`${passed.toFixed(2)} s in all`);
    this.note.textContent = told.filter(Boolean).join(", ");
    this.draw();
  }
}

// The events of a stream: the JSON of each `data:` line. The text may be cut anywhere.
async function* events_of(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

const ENDS = { stop: "", length: "cut off by the most tokens or the end of the context", tool_calls: "wants to call a tool" };

// Asks for an answer to what has been said.
async function ask() {
  tell_trouble("");
  const controller = new AbortController();
  const conversation = messages;
  let view = null;
  let why = "the stream ended early";
  const began = performance.now();
  let usage = null;
  try {
    const body = JSON.stringify(request_body());
    set_running(controller);
    $("spoken").textContent = "The model answers.";
    const answer = await fetch("v1/chat/completions", { method: "POST", headers: fields(), body, signal: controller.signal });
    if (!answer.ok) throw new Error(await refusal(answer));
    view = new AnswerView(began);
    for await (const event of events_of(answer)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const choice = event.choices[0];
      if (!choice) continue;
      view.add(choice.delta);
      if (choice.finish_reason) why = ENDS[choice.finish_reason] ?? choice.finish_reason;
    }
  } catch (failed) {
    why = controller.signal.aborted ? "stopped" : "broken off";
    if (!controller.signal.aborted) tell_trouble(failed.message);
  }
  if (conversation !== messages) return; // a new chat has begun
  if (view) {
    view.end(why, usage);
    messages.push({ role: "assistant", content: view.text });
    const spoken = view.body.textContent;
    $("spoken").textContent = `The answer${why ? `, ${why}` : ""}: ${spoken.slice(0, 1000)}`;
  } else {
    $("spoken").textContent = "";
  }
  set_running(null);
}

function send() {
  const text = $("question").value;
  if (running || !text.trim()) return;
  $("question").value = "";
  messages.push({ role: "user", content: text });
  show_turn("user", text);
  ask();
}

function regenerate() {
  if (running) return;
  while (messages.at(-1)?.role === "assistant") {
    messages.pop();
    $("turns").lastElementChild.remove();
  }
  if (messages.length) ask();
}

function start_afresh() {
  running?.abort();
  messages = [];
  $("turns").replaceChildren();
  $("empty").hidden = false;
  tell_trouble("");
  $("spoken").textContent = "";
  set_running(null);
  $("question").focus();
}

// ---- the page ----

async function name_model() {
  try {
    const answer = await fetch("v1/models", { headers: fields() });
    if (!answer.ok) throw new Error(await refusal(answer));
    const [first] = (await answer.json()).data;
    model = first.id;
    $("model").textContent = `${model}, up to ${first.max_model_len.toLocaleString("en")} tokens`;
    document.title = `${model} – tenon`;
    tell_trouble("");
  } catch (failed) {
    tell_trouble(failed.message);
  }
}

load_settings();
for (const name of [...SETTINGS, "key"]) $(name).addEventListener("change", save_settings);
$("key").addEventListener("change", name_model);
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("question").addEventListener("keydown", (event) => {
  // While an input method composes, Enter takes its proposal.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("question").focus();
});
$("again").addEventListener("click", regenerate);
$("fresh").addEventListener("click", start_afresh);
name_model();
watch_engine();
