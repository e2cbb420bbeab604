// Loads pages in a frame, one after the other, and tells what a reader would stumble over.
"use strict";

const channels = (text) => text.match(/[\d.]+/g).map(Number);
const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);

// The colour behind an element: what it and its parents paint, over white or black.
function ground(element, view) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    const [r, g, b, a = 1] = channels(view.getComputedStyle(e).backgroundColor);
    layers.push([r, g, b, a]);
    if (a === 1) break;
  }
  const dark = view.matchMedia("(prefers-color-scheme: dark)").matches;
  let below = dark ? [0, 0, 0] : [255, 255, 255];
  for (const [r, g, b, a] of layers.reverse()) {
    below = [r, g, b].map((c, k) => a * c + (1 - a) * below[k]);
  }
  return below;
}

function contrast(element, view) {
  const a = luminance(channels(view.getComputedStyle(element).color));
  const b = luminance(ground(element, view));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}

function hasText(element) {
  return [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
}

function look(frame, width) {
  const view = frame.contentWindow, page = view.document, faults = [];
  const wide = page.documentElement.scrollWidth;
  if (wide > width) faults.push(`${wide} wide`);
  for (const picture of page.querySelectorAll("main svg.td-picture, article svg.td-picture, img")) {
    const closed = picture.closest("details:not([open])");
    const box = picture.getBoundingClientRect();
    if (!closed && (box.width < 20 || box.height < 20)) faults.push("a picture is not seen");
    if (!closed && !picture.closest(".wide") && box.right > width + 1) faults.push("a picture is cut");
  }
  const faint = new Set();
  for (const element of page.querySelectorAll("main *, article *, footer *, .sidebar-tree *")) {
    if (element.closest("svg, [hidden]") || !hasText(element)) continue;
    if (!element.getClientRects().length || view.getComputedStyle(element).opacity === "0") continue;
    if (contrast(element, view) < 4.5) faint.add(`${element.tagName} '${element.textContent.trim().slice(0, 20)}'`);
  }
  if (faint.size) faults.push(`faint: ${[...faint].slice(0, 3).join("; ")}`);
  const field = page.querySelector(".table-filter input");
  if (field) faults.push(...useTable(page, field));
  return faults;
}

function useTable(page, field) {
  const table = page.querySelector("table.sortable"), faults = [];
  const rows = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const all = rows().length;
  field.value = "tenslora cp";
  field.dispatchEvent(new page.defaultView.Event("input"));
  if (!rows().length || rows().length >= all) faults.push("the filter does not filter");
  field.value = "";
  field.dispatchEvent(new page.defaultView.Event("input"));
  const numbers = () => rows().map((row) => Number(row.cells[2].textContent.replaceAll(",", "")));
  const button = table.querySelectorAll("th button")[2];
  for (const order of [1, -1]) {
    button.click();
    const n = numbers();
    if (n.some((x, k) => k && order * (x - n[k - 1]) < 0)) faults.push("the numbers are not sorted");
  }
  return faults;
}

async function finds(frame) {
  for (let k = 0; k < 100; k++) {
    if (frame.contentDocument.querySelector("ul.search li a")) return true;
    await new Promise((done) => setTimeout(done, 50));
  }
  return false;
}

async function lookAt(pages, width) {
  const found = {};
  for (const path of pages) {
    const frame = document.createElement("iframe");
    frame.style = `width:${width}px;height:900px;border:0`;
    const loaded = new Promise((done) => frame.addEventListener("load", done));
    frame.src = path;
    document.body.append(frame);
    await loaded;
    const faults = look(frame, width);
    if (path.includes("?q=") && !(await finds(frame))) faults.push("the search finds nothing");
    if (faults.length) found[path] = faults;
    frame.remove();
  }
  return found;
}

async function main(pages, widths) {
  const found = { pages: pages.length };
  for (const width of widths) found[width] = await lookAt(pages, width);
  document.body.innerHTML = `<pre id="found"></pre>`;
  document.getElementById("found").textContent = JSON.stringify(found);
}
