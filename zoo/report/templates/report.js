"use strict";
// Optional: all content is visible without it. Adds sorting, selects, tooltips, copying and the picture browser.
document.documentElement.classList.add("js");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Tables: a click on a column header sorts by it, best or first on top; a second click reverses the order.
function sortValue(row, column) {
  const text = row.cells[column].innerText.trim().replace(/,/g, "").replace(/^\u2212/, "-");
  const number = parseFloat(text.replace(/^[^-.\d]+/, ""));
  return { number, text, known: !/^\u2013?$/.test(text) };
}

function compareRows(a, b, numeric, sign) {
  if (a.known !== b.known) return a.known ? -1 : 1; // unknown values stay at the end
  return sign * (numeric ? a.number - b.number : a.text.localeCompare(b.text));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => ({ row, value: sortValue(row, column) }));
      const known = rows.filter(({ value }) => value.known);
      const numeric = column > 0 && known.length > 0 && known.every(({ value }) => !Number.isNaN(value.number));
      const firstOrder = numeric && !head.hasAttribute("data-least") ? "descending" : "ascending";
      const reversed = { ascending: "descending", descending: "ascending" }[head.getAttribute("aria-sort")];
      const order = reversed ?? firstOrder;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => compareRows(a.value, b.value, numeric, sign));
      body.append(...rows.map(({ row }) => row));
    });
  });
}

// Choices: a select shows one of several figures.
function makeChoices(group) {
  const figures = [...group.children].filter((child) => child.classList.contains("choice"));
  const select = make("select", {}, ...figures.map((figure, at) => make("option", { value: at }, figure.dataset.name)));
  const label = make("label", { class: "chooser" }, `${group.dataset.label} `, select);
  select.addEventListener("change", () => figures.forEach((figure, at) => (figure.hidden = at !== Number(select.value))));
  group.prepend(label);
}

// Plots: a tooltip, by pointer or arrow keys, of the nearest mark, or of all lines at one x where a plot has a probe.
function formatShare(value) {
  return value.toFixed(2).replace(/^0\./, ".");
}

function pathPoints(path) {
  return path.getAttribute("d").slice(1).split("L").map((pair) => pair.split(" ").map(Number));
}

function valueAt(points, x) {
  const next = points.findIndex((point) => point[0] >= x - 1e-6);
  if (next < 0) return points[points.length - 1][1];
  if (next === 0) return points[0][1];
  const [[x0, y0], [x1, y1]] = [points[next - 1], points[next]];
  return x1 === x0 ? y1 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

function probeStops(svg) {
  const [from, to, left, right, top, bottom] = svg.dataset.probe.split(" ").map(Number);
  const lines = [...svg.querySelectorAll(".line")].map((line) => ({
    name: line.dataset.name,
    points: pathPoints(line.querySelector(".curve")),
  }));
  return Array.from({ length: 101 }, (_, at) => {
    const x = left + ((right - left) * at) / 100;
    const value = (line) => (bottom - valueAt(line.points, x)) / (bottom - top);
    const values = lines.map((line) => `${line.name} ${formatShare(value(line))}`);
    return { x, y: top, text: [`at recall ${formatShare(from + ((to - from) * at) / 100)}`, ...values].join("\n"), line: [top, bottom] };
  });
}

function markStops(svg) {
  return [...svg.querySelectorAll("circle, rect.block")].map((mark) => {
    const box = mark.getBBox();
    return { x: box.x + box.width / 2, y: box.y + box.height / 2, box, text: mark.querySelector("title").textContent, mark };
  });
}

function distance(stop, x, y) {
  if (stop.line) return Math.abs(stop.x - x);
  const { box } = stop;
  return Math.hypot(Math.max(box.x - x, 0, x - box.x - box.width), Math.max(box.y - y, 0, y - box.y - box.height));
}

function makeTooltips(svg) {
  const stops = svg.dataset.probe ? probeStops(svg) : markStops(svg);
  if (!stops.length) return;
  svg.querySelectorAll("circle > title, rect.block > title").forEach((title) => title.remove()); // replaced by the tooltip of this script
  const tip = make("div", { class: "tip", role: "status", hidden: "" });
  const name = `${svg.getAttribute("aria-label").split(/[;.]/)[0]}: arrow keys show the values`;
  const holder = make("div", { class: "tooltips", role: "group", tabindex: "0", "aria-label": name });
  svg.replaceWith(holder);
  holder.append(svg, tip);
  const hair = document.createElementNS("http://www.w3.org/2000/svg", "path");
  hair.setAttribute("class", "hair");
  svg.append(hair);
  let current = -1;
  function show(at) {
    stops[current]?.mark?.classList.remove("on");
    current = at;
    const stop = stops[at];
    tip.hidden = !stop;
    if (!stop) return hair.removeAttribute("d");
    stop.mark?.classList.add("on");
    if (stop.line) hair.setAttribute("d", `M${stop.x} ${stop.line[0]}V${stop.line[1]}`);
    tip.textContent = stop.text;
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const available = holder.clientWidth - tip.offsetWidth;
    const right = stop.x * scale + 14;
    tip.style.left = `${Math.max(0, right <= available ? right : Math.min(available, stop.x * scale - 14 - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, stop.y * scale - (stop.line ? 0 : tip.offsetHeight + 8))}px`;
  }
  function showNearest(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const distances = stops.map((stop) => distance(stop, point.x, point.y));
    const nearest = distances.indexOf(Math.min(...distances));
    show(stops[nearest].line || distances[nearest] < 24 ? nearest : -1);
  }
  svg.addEventListener("pointermove", showNearest);
  svg.addEventListener("pointerdown", showNearest); // a tap
  svg.addEventListener("pointerleave", () => show(-1));
  holder.addEventListener("blur", () => show(-1));
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") return show(-1);
    if (!step) return;
    event.preventDefault();
    show(current < 0 ? (step > 0 ? 0 : stops.length - 1) : (current + step + stops.length) % stops.length);
  });
}

// Buttons that copy a block of text.
function makeCopyButton(block) {
  const button = make("button", { type: "button", class: "copy" }, `Copy ${block.dataset.copy}`);
  const status = make("span", { role: "status", class: "copied" });
  const code = block.querySelector("code");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      status.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code); // without access to the clipboard, select the text for copying by key
      status.textContent = "selected";
    }
  });
  block.before(make("p", { class: "copying" }, button, " ", status));
}

// Pictures: one at a time, two views side by side, switched by click, arrow keys or swipe.
const SWIPE = 40; // pixels

function makeBrowser(browser) {
  const figures = [...browser.querySelectorAll(".picture")];
  const select = browser.querySelector("select.category");
  const film = make("div", { class: "film", role: "group", "aria-label": "Pictures" });
  const names = make("div", { class: "names", role: "group", "aria-label": "Views: up and down arrow keys switch" });
  const beside = make("select", { class: "beside" });
  const status = make("p", { class: "where", role: "status" });
  const viewName = (view) => view.dataset.name;
  const allNames = [...new Set(figures.flatMap((figure) => [...figure.querySelectorAll(".view")].map(viewName)))];
  const thumbs = figures.map((figure, at) => {
    const [width, height] = figure.querySelector("svg.shot").getAttribute("viewBox").split(" ").slice(2);
    const thumb = make("button", { type: "button", "aria-label": `Picture ${at + 1}: ${figure.dataset.name}` });
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    use.setAttribute("href", `#${figure.querySelector("image").id}`);
    svg.append(use);
    thumb.append(svg);
    thumb.addEventListener("click", () => show({ at }));
    film.append(thumb);
    return thumb;
  });
  const tabs = allNames.map((name) => {
    const tab = make("button", { type: "button" }, make("b", {}, name), " ", make("span", {}));
    tab.addEventListener("click", () => show({ name }));
    names.append(tab);
    return tab;
  });
  beside.append(make("option", { value: "" }, "nothing"), ...allNames.map((name) => make("option", { value: name }, name)));
  beside.addEventListener("change", () => show({ other: beside.value }));

  const narrow = matchMedia("(max-width: 50rem)").matches;
  const state = { at: 0, name: allNames[1] ?? allNames[0], other: narrow ? "" : allNames[0], category: "all" };
  const inCategory = (figure) => state.category === "all" || JSON.parse(figure.dataset.categories).includes(state.category);

  function show(change) {
    Object.assign(state, change);
    const shown = figures.filter(inCategory);
    if (!inCategory(figures[state.at])) state.at = figures.indexOf(shown[0]);
    const figure = figures[state.at];
    figures.forEach((other) => (other.hidden = other !== figure));
    thumbs.forEach((thumb, at) => {
      thumb.hidden = !inCategory(figures[at]);
      thumb.setAttribute("aria-pressed", at === state.at);
      thumb.tabIndex = at === state.at ? 0 : -1;
    });
    film.scrollLeft = thumbs[state.at].offsetLeft - (film.clientWidth - thumbs[state.at].offsetWidth) / 2;
    const views = [...figure.querySelectorAll(".view")];
    views.forEach((view) => {
      view.hidden = viewName(view) !== state.name && viewName(view) !== state.other;
      view.classList.toggle("other", viewName(view) === state.other && state.other !== state.name);
    });
    tabs.forEach((tab, at) => {
      const view = views.find((candidate) => viewName(candidate) === allNames[at]);
      tab.hidden = !view;
      tab.setAttribute("aria-pressed", allNames[at] === state.name);
      tab.tabIndex = allNames[at] === state.name ? 0 : -1;
      tab.lastChild.textContent = view?.dataset.counts ?? "";
    });
    figure.querySelectorAll(".notes li").forEach((note) => {
      note.hidden = state.category !== "all" && note.dataset.category !== state.category;
    });
    figure.querySelectorAll("rect.focus").forEach((rect) => {
      rect.style.display = state.category === rect.dataset.category ? "" : "none";
    });
    beside.value = state.other;
    status.textContent = `Picture ${shown.indexOf(figure) + 1} of ${shown.length}`;
  }

  function stepPicture(step) {
    const shown = figures.filter(inCategory);
    const next = shown[(shown.indexOf(figures[state.at]) + step + shown.length) % shown.length];
    show({ at: figures.indexOf(next) });
    if (film.contains(document.activeElement)) thumbs[state.at].focus();
  }

  function stepView(step) {
    const present = allNames.filter((_, at) => !tabs[at].hidden);
    show({ name: present[(present.indexOf(state.name) + step + present.length) % present.length] });
    if (names.contains(document.activeElement)) tabs[allNames.indexOf(state.name)].focus();
  }

  browser.addEventListener("keydown", (event) => {
    if (["SELECT", "INPUT"].includes(event.target.tagName) || event.altKey || event.ctrlKey || event.metaKey) return;
    const action = {
      ArrowLeft: () => stepPicture(-1),
      ArrowRight: () => stepPicture(1),
      ArrowUp: () => stepView(-1),
      ArrowDown: () => stepView(1),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  select.addEventListener("change", () => {
    const [first, second] = JSON.parse(select.selectedOptions[0].dataset.views);
    const change = { category: select.value };
    if (second) Object.assign(change, { name: second, other: narrow ? "" : first });
    show(change);
  });

  const masks = browser.querySelector("input.masks");
  masks?.addEventListener("change", () => browser.classList.toggle("unmasked", !masks.checked));

  const controls = browser.querySelector(".controls");
  controls.append(make("label", {}, "Compare with ", beside), status);
  controls.hidden = false;
  const stage = make("div", { class: "stage", role: "group", tabindex: "0", "aria-label": "Picture: arrow keys left and right switch pictures, up and down switch detectors" });
  stage.append(...figures);
  // A thumb that moves sideways switches pictures; one that moves up or down scrolls the page (touch-action).
  let start = null;
  stage.addEventListener("pointerdown", (event) => (start = event.pointerType === "touch" && event.isPrimary ? event : null));
  stage.addEventListener("pointerup", (event) => {
    const [right, down] = start ? [event.clientX - start.clientX, event.clientY - start.clientY] : [0, 0];
    start = null;
    if (Math.abs(right) > Math.max(SWIPE, 2 * Math.abs(down))) stepPicture(right < 0 ? 1 : -1);
  });
  browser.append(film, make("div", { class: "desk" }, names, stage));
  show({});
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("[data-copy]").forEach(makeCopyButton);
document.querySelectorAll(".choices").forEach(makeChoices);
document.querySelectorAll("svg.plot").forEach(makeTooltips);
document.querySelectorAll(".browser").forEach(makeBrowser);
