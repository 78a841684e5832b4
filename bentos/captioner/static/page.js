// The page's whole behaviour. Pictures go to /v1/caption one by one, a few at a time.
"use strict";

const TOKEN = "captioner.token";
const HISTORY = "captioner.history";
const MOST_REMEMBERED = 30;
const AT_ONCE = 4;
const MOST_TRIES = 5;
const THUMBNAIL = 288;

const byId = (id) => document.getElementById(id);
const waiting = [];
let running = 0;
let held = []; // cards that wait for a token

class Refused extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Refused(0, "The captioner can't be reached.");
  }
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  const detail = problem.detail ?? `The captioner answered ${response.status}.`;
  throw new Refused(response.status, detail, Number(response.headers.get("Retry-After")));
}

// --- cards ----------------------------------------------------------------------------------

function makeCard(name) {
  const card = byId("card").content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  part(".name").textContent = name;
  part(".correct").addEventListener("click", () => {
    part(".correct").hidden = true;
    part(".correction").hidden = false;
    const field = part(".correction input");
    field.value = part(".caption").textContent;
    field.select();
  });
  part(".cancel").addEventListener("click", () => closeCorrection(card));
  part(".correction").addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeCorrection(card);
  });
  return card;
}

function closeCorrection(card) {
  card.querySelector(".correction").hidden = true;
  showError(card, "");
  const button = card.querySelector(".correct");
  button.hidden = false;
  button.focus();
}

function showError(card, message) {
  const error = card.querySelector(".error");
  error.textContent = message;
  error.hidden = !message;
}

function showAnswer(card, entry) {
  const part = (selector) => card.querySelector(selector);
  card.classList.remove("waiting");
  part(".caption").textContent = entry.caption || "(no words)";
  part(".facts").textContent =
    `log-probability ${entry.logProbability.toFixed(2).replace("-", "−")} · ` +
    `${entry.model} version ${entry.version}`;
  part(".correct").hidden = Boolean(entry.correction);
  part(".correct").setAttribute("aria-label", `Correct the caption of ${entry.name}`);
  if (entry.thumbnail) showPicture(card, entry.thumbnail);
  if (entry.correction) showCorrection(card, entry.correction);
  part(".correction").addEventListener("submit", (event) => {
    event.preventDefault();
    correct(card, entry);
  });
}

function showPicture(card, source) {
  const image = card.querySelector("img");
  image.src = source;
  image.hidden = false;
}

function showCorrection(card, text) {
  card.classList.add("superseded");
  const line = card.querySelector(".corrected");
  line.textContent = `✓ Your caption: ${text}`;
  line.hidden = false;
}

async function correct(card, entry) {
  const text = card.querySelector(".correction input").value.trim();
  if (!text) return;
  try {
    await ask("v1/feedback", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ request_id: entry.requestId, caption: text }),
    });
  } catch (error) {
    if (error.status === 401) askForToken();
    const lost = "This captioner kept nothing of this picture, so there is nothing to correct.";
    showError(card, error.status === 404 ? lost : error.message);
    return;
  }
  showError(card, "");
  card.querySelector(".correction").hidden = true;
  showCorrection(card, text);
  say(`Thank you. The caption of ${entry.name} was corrected.`);
  remember({ ...entry, correction: text });
}

// --- pictures -------------------------------------------------------------------------------

function take(files) {
  byId("results-section").hidden = files.length === 0 && !byId("results").children.length;
  for (const file of files) {
    const card = makeCard(file.name || "pasted picture");
    card.querySelector(".retry").addEventListener("click", () => {
      showError(card, "");
      card.querySelector(".retry").hidden = true;
      card.querySelector(".caption").hidden = false;
      enqueue(card, file);
    });
    byId("results").prepend(card);
    enqueue(card, file);
  }
}

function enqueue(card, file) {
  card.classList.add("waiting");
  card.querySelector(".caption").textContent = "Looking…";
  waiting.push([card, file]);
  while (running < AT_ONCE && waiting.length) work();
}

async function work() {
  running += 1;
  while (waiting.length) await describe(...waiting.shift());
  running -= 1;
}

async function describe(card, file) {
  const name = file.name || "pasted picture";
  const thumbnail = await shrink(file);
  if (thumbnail) showPicture(card, thumbnail);
  try {
    const answer = await send(file);
    const entry = {
      name,
      thumbnail,
      requestId: answer.request_id,
      caption: answer.caption,
      logProbability: answer.log_probability,
      model: answer.model.name,
      version: answer.model.version,
    };
    showAnswer(card, entry);
    showModel(answer.model);
    say(`${name}: ${answer.caption}`);
    remember(entry);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) {
      held.push([card, file]);
      card.querySelector(".caption").textContent = "Waiting for the token…";
      askForToken();
      return;
    }
    card.classList.remove("waiting");
    card.querySelector(".caption").hidden = true;
    card.querySelector(".retry").hidden = [400, 413, 415, 422].includes(error.status);
    showError(card, error.message);
  }
}

async function send(file) {
  const body = new FormData();
  body.append("image", file, file.name || "picture");
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask("v1/caption", { method: "POST", body });
    } catch (error) {
      if (![429, 503].includes(error.status) || tries === MOST_TRIES) throw error;
      await new Promise((done) => setTimeout(done, 1000 * (error.retryAfter || 1)));
    }
  }
}

// A small copy, upright, for the card and the history; null for what the browser can't draw.
async function shrink(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, THUMBNAIL / Math.min(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return canvas.toDataURL("image/jpeg", 0.8);
  } catch {
    return null;
  }
}

// --- history, in this browser ---------------------------------------------------------------

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(HISTORY)) ?? [];
  } catch {
    return [];
  }
}

function remember(entry) {
  const others = remembered().filter((one) => one.requestId !== entry.requestId);
  let entries = [entry, ...others].slice(0, MOST_REMEMBERED);
  while (entries.length) {
    try {
      localStorage.setItem(HISTORY, JSON.stringify(entries));
      return;
    } catch {
      entries = entries.slice(0, -1); // the browser's store is full
    }
  }
}

function showHistory() {
  const entries = remembered();
  byId("history-section").hidden = entries.length === 0;
  byId("history").replaceChildren(
    ...entries.map((entry) => {
      const card = makeCard(entry.name);
      showAnswer(card, entry);
      return card;
    }),
  );
}

// --- token, model, status -------------------------------------------------------------------

function askForToken() {
  const form = byId("token-form");
  if (!form.hidden) return;
  if (sessionStorage.getItem(TOKEN)) {
    byId("token-hint").className = "hint bad";
    byId("token-hint").textContent = "That token was not accepted; try another one.";
    say("That token was not accepted.");
  }
  form.hidden = false;
  byId("token").value = "";
  byId("token").focus();
}

async function useToken(event) {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value.trim());
  byId("token-form").hidden = true;
  await greet();
  const again = held;
  held = [];
  for (const [card, file] of again) enqueue(card, file);
}

async function greet() {
  try {
    showModel(await ask("v1/model"));
  } catch (error) {
    if (error.status === 401) askForToken();
    else byId("model").textContent = error.message;
  }
}

function showModel(model) {
  byId("model").textContent = `${model.name} · version ${model.version}`;
}

function say(text) {
  byId("status").textContent = text;
}

// --- doors ----------------------------------------------------------------------------------

byId("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
for (const end of ["dragleave", "dragend", "drop"]) {
  document.addEventListener(end, () => document.body.classList.remove("dragging"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});
byId("token-form").addEventListener("submit", useToken);
byId("clear").addEventListener("click", () => {
  localStorage.removeItem(HISTORY);
  showHistory();
  byId("files").focus();
});

showHistory();
greet();
