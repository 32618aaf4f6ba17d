"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const keyOf = (cell) => {
    if (!cell) return "";
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    const number = Number(text.replace(/[,%$]/g, ""));
    return text !== "" && Number.isFinite(number) ? number : text;
  };
  const compare = (one, other) => {
    if (typeof one === "number" && typeof other === "number") return one - other;
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
    return one.localeCompare(other, undefined, { numeric: true });
  };
  const sortBy = (table, header, place) => {
    const falling = header.getAttribute("aria-sort") === "ascending";
    const groups = table.tBodies.length > 1 ? [...table.tBodies] : [...table.tBodies[0].rows];
    const first = (group) => (group.rows ? group.rows[0] : group);
    const keyed = groups.map((group) => [keyOf(first(group).cells[place]), group]);
    keyed.sort((one, other) => compare(one[0], other[0]) * (falling ? -1 : 1));
    const home = groups[0].parentNode;
    for (const [, group] of keyed) home.append(group);
    for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  };
  for (const table of all("table.sortable")) {
    if (!table.tBodies.length) continue;
    [...table.tHead.rows[0].cells].forEach((header, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortBy(table, header, place));
      header.append(button);
    });
  }

  const form = document.getElementById("filter");
  if (form) {
    const rows = all("#wrong > tbody");
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const told = form.querySelector("output");
    const wanted = (name) => (form.elements[name] ? form.elements[name].value : "");
    const has = (row, name, value) => value === "" || row.dataset[name].split(/\s+/).includes(value);
    const show = () => {
      const words = wanted("text").toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const fits = words.every((word) => texts.get(row).includes(word))
          && has(row, "fields", wanted("field")) && has(row, "slices", wanted("slice")) && has(row, "status", wanted("status"));
        row.hidden = !fits;
        shown += fits;
      }
      told.textContent = `${shown} of ${rows.length} rows`;
    };
    form.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.elements.open.addEventListener("click", () => {
      const visible = rows.filter((row) => !row.hidden).map((row) => row.querySelector("details"));
      const open = visible.some((each) => !each.open);
      for (const each of visible) each.open = open;
      form.elements.open.textContent = open ? "Close all" : "Open all";
    });
    form.hidden = false;
    show();
  }

  const charts = all(".chart").map((chart) => ({ hits: all(".hit", chart), read: chart.querySelector(".read") }));
  const point = (place) => {
    for (const { hits, read } of charts) {
      hits.forEach((hit, number) => hit.classList.toggle("on", number === place));
      read.textContent = hits[place] ? hits[place].querySelector("title").textContent : "";
    }
  };
  for (const { hits } of charts) {
    hits.forEach((hit, place) => {
      hit.addEventListener("pointerenter", () => point(place));
      hit.addEventListener("pointerleave", () => point(-1));
    });
  }
})();
