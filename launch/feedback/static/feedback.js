// Keys, saving with retries, the guidelines' panel, and the time that a page is looked at. Without it the forms work as they are.
"use strict";

const LONGEST_PAUSE = 15; // seconds between two tries

const find = (selector) => document.querySelector(selector);
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// The live region is filled after loading: screen readers announce changes only.
function announce(text) {
  const region = find("#status");
  if (region) region.textContent = text;
}

function alertOf(text) {
  const region = find("#alert");
  if (!region) return;
  region.textContent = text;
  region.hidden = !text;
}

// Seconds that the page was visible: a rater who leaves it in the background does not compare.
const watch = { total: 0, since: document.hidden ? null : performance.now() };
function visibleSeconds() {
  return (watch.total + (watch.since === null ? 0 : performance.now() - watch.since)) / 1000;
}
document.addEventListener("visibilitychange", () => {
  watch.total = 1000 * visibleSeconds();
  watch.since = document.hidden ? null : performance.now();
});

// Saving. The vote's id is in the form, so that a vote that is sent twice is stored once.
let isBusy = false;
async function send(form, button) {
  if (isBusy) return;
  isBusy = true;
  if (form.elements.seconds) form.elements.seconds.value = visibleSeconds().toFixed(1);
  const body = new URLSearchParams(new FormData(form, button));
  form.classList.add("busy");
  announce(form.dataset.saving || "");
  for (let pause = 0.5; ; pause = Math.min(LONGEST_PAUSE, 2 * pause)) {
    const answer = await post(form.action, body);
    if (answer && answer.next) return location.replace(answer.next);
    if (answer && answer.message) {
      alertOf(answer.message);
      break;
    }
    alertOf(form.dataset.retrying || "");
    await wait(pause);
  }
  form.classList.remove("busy");
  isBusy = false;
}

// The server's answer, or null if there is none, or one of a proxy without a server behind it.
async function post(address, body) {
  try {
    const answer = await fetch(address, { method: "POST", body, headers: { Accept: "application/json" }, signal: AbortSignal.timeout(20000) });
    return answer.status >= 500 || answer.status === 429 ? null : await answer.json();
  } catch {
    return null;
  }
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.target, event.submitter);
});

// Keys: every control names its own in data-key.
const KEPT = "rlhf-feedback-keys";
let hasKeys = localStorage.getItem(KEPT) !== "off";
function showKeys() {
  const button = find("#keys");
  document.body.classList.toggle("without-keys", !hasKeys);
  if (!button) return;
  button.hidden = false;
  button.setAttribute("aria-pressed", String(hasKeys));
  button.querySelector("b").textContent = hasKeys ? button.dataset.on : button.dataset.off;
}
function toggleKeys() {
  hasKeys = !hasKeys;
  localStorage.setItem(KEPT, hasKeys ? "on" : "off");
  showKeys();
}

function isTyping(element) {
  return element.matches("textarea, input:not([type=checkbox])");
}

function press(control) {
  if (control.matches("textarea")) {
    control.focus();
    control.scrollIntoView({ block: "nearest" });
  } else {
    control.click();
  }
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return leave(event);
  if (!hasKeys || event.repeat || event.isComposing || event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
  if (event.key === "Enter" && event.target.matches("a, button, summary")) return; // the browser presses it
  const control = find(`[data-key="${CSS.escape(event.key.length === 1 ? event.key.toLowerCase() : event.key)}"]`);
  if (!control || control.disabled) return;
  event.preventDefault();
  press(control);
});

function leave(event) {
  const panel = find("#panel");
  if (panel && !panel.hidden) closePanel();
  else if (isTyping(event.target)) event.target.blur();
}

// The guidelines' panel. Without it the link leads to their page.
async function openPanel(event) {
  event.preventDefault();
  const panel = find("#panel");
  if (!panel.hidden) return closePanel();
  const answer = await fetch(find("#guidelines-link").href + "?panel=1");
  if (!answer.ok) return location.assign(find("#guidelines-link").href);
  find("#panel-text").innerHTML = await answer.text(); // rendered by the server, without scripts; the page's policy forbids them
  panel.hidden = false;
  find("#panel-close").focus();
}
function closePanel() {
  find("#panel").hidden = true;
  find("#guidelines-link").focus();
}

function showSession() {
  const session = find(".session");
  if (!session) return;
  const seconds = Number(session.dataset.seconds) + performance.now() / 1000;
  session.querySelector("b").textContent = session.dataset.text.replace("{minutes}", String(Math.floor(seconds / 60)));
}

// The last turn is what the answers answer; earlier ones may be scrolled to.
function showLastTurn() {
  const turns = find(".turns");
  const last = turns?.lastElementChild;
  if (last && last !== turns.firstElementChild) turns.scrollTop = last.offsetTop - turns.offsetTop;
}

find("#keys")?.addEventListener("click", toggleKeys);
find("#guidelines-link")?.addEventListener("click", openPanel);
find("#panel-close")?.addEventListener("click", closePanel);
showKeys();
showLastTurn();
setInterval(showSession, 15000);
setTimeout(() => announce(find("#status")?.dataset.text || ""), 100);
