// Tables of the class "sortable" get a field to filter by, and headings to sort by.
"use strict";

function sortBy(table, column, button) {
  const body = table.tBodies[0];
  const down = button.getAttribute("aria-pressed") === "true";
  const key = (row) => row.cells[column].textContent.trim();
  const number = (text) => Number(text.replaceAll(",", ""));
  const rows = [...body.rows].sort((a, b) => {
    const difference = number(key(a)) - number(key(b));
    return Number.isNaN(difference) ? key(a).localeCompare(key(b)) : difference;
  });
  body.append(...(down ? rows.reverse() : rows));
  for (const other of table.querySelectorAll("th button")) other.removeAttribute("aria-pressed");
  button.setAttribute("aria-pressed", String(!down));
}

function filterBy(table, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of table.tBodies[0].rows) {
    const content = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => content.includes(word));
  }
}

function prepare(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.textContent = cell.textContent;
    button.addEventListener("click", () => sortBy(table, column, button));
    cell.replaceChildren(button);
  });
  const label = document.createElement("label");
  const field = document.createElement("input");
  label.className = "table-filter";
  field.type = "search";
  field.addEventListener("input", () => filterBy(table, field.value));
  label.append("Filter: ", field);
  table.before(label);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.sortable").forEach(prepare);
});
