"use strict";
// What the page does by itself: reads values off the curves, and sorts tables. It is whole without either.

// readings[n]: of chart n, for every step that is drawn, [place in units of the drawing, words].
const readings = JSON.parse(document.getElementById("readings").textContent);

function nearest(places, x) {
  let best = 0;
  for (let k = 1; k < places.length; k++) {
    if (Math.abs(places[k][0] - x) < Math.abs(places[best][0] - x)) best = k;
  }
  return best;
}

function readOff(figure) {
  const places = readings[Number(figure.dataset.chart)];
  if (!places.length) return;
  const drawing = figure.querySelector("svg[role]");
  const cursor = drawing.querySelector(".cursor");
  const words = figure.querySelector("output");
  let at = places.length;

  function show(k) {
    at = Math.min(Math.max(k, 0), places.length - 1);
    cursor.setAttribute("x1", places[at][0]);
    cursor.setAttribute("x2", places[at][0]);
    cursor.setAttribute("visibility", "visible");
    words.textContent = places[at][1];
  }

  function hide() {
    cursor.setAttribute("visibility", "hidden");
    words.textContent = "";
  }

  function point(event) {
    const box = drawing.getBoundingClientRect();
    show(nearest(places, ((event.clientX - box.left) / box.width) * drawing.viewBox.baseVal.width));
  }

  drawing.addEventListener("pointermove", point);
  drawing.addEventListener("pointerdown", point);
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("blur", hide);
  drawing.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at === places.length ? 0 : at + 1);
  });
}

// A number sorts as a number, text as text, and what is not there comes last in either direction.
function compare(a, b, direction) {
  const [left, right] = [a, b].map((cell) => cell.dataset.value ?? cell.textContent);
  if (left === right) return 0;
  if (left === "\u2013" || right === "\u2013") return left === "\u2013" ? 1 : -1;
  const numeric = "value" in a.dataset && "value" in b.dataset;
  return direction * (numeric ? Number(left) - Number(right) : left.localeCompare(right));
}

function sort(table, head) {
  const column = head.cellIndex;
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  rows.sort((a, b) => compare(a.cells[column], b.cells[column], descending ? -1 : 1));
  body.append(...rows);
}

document.querySelectorAll("figure.chart").forEach(readOff);
document.querySelectorAll("table.sortable").forEach((table) => {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sort(table, head));
  }
});
