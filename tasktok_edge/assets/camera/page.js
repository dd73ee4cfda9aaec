"use strict";
// Asks for the next result, shows it, asks again: as fast as this browser can, and no faster than there are results.
const $ = (id) => document.getElementById(id);
const KEPT = 220;  // results in the plot
const times = [];
const urls = { left: null, right: null };
let after = -1, shownAt = 0, last = null;

function show(id, bytes) {
  const url = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
  $(id).src = url;
  if (urls[id]) URL.revokeObjectURL(urls[id]);
  urls[id] = url;
}

function split() {
  const share = Number($("slider").value);
  $("right").style.clipPath = `inset(0 0 0 ${share}%)`;
  $("edge").style.left = `calc(${share}% - 1px)`;
}

function options(id, names, values, chosen) {
  const select = $(id), key = JSON.stringify([names, values]);
  if (select.dataset.key !== key) {
    select.replaceChildren(...names.map((name, i) => new Option(name, values[i])));
    select.dataset.key = key;
  }
  if (document.activeElement !== select) select.value = chosen;
}

function plot() {
  const canvas = $("plot"), draw = canvas.getContext("2d"), { width, height } = canvas;
  draw.clearRect(0, 0, width, height);
  const ends = times.map((t) => t.end).sort((a, b) => a - b);
  const at = (share) => ends[Math.min(ends.length - 1, Math.floor(share * ends.length))];
  const top = Math.max(10, 1.3 * at(0.97));  // a single peak is cut off, so that the rest is seen
  draw.fillStyle = "#59636e";
  draw.font = "11px system-ui";
  draw.fillText(top.toFixed(0), 4, 12);
  for (const [name, colour] of [["end", "#0969da"], ["inference", "#bf8700"]]) {
    draw.strokeStyle = colour;
    draw.beginPath();
    times.forEach((t, i) => draw.lineTo((i * width) / KEPT, height - (t[name] / top) * height));
    draw.stroke();
  }
  $("latency").textContent = `p50 ${at(0.5).toFixed(1)}, p95 ${at(0.95).toFixed(1)}`;
}

function tokens(told) {
  const cells = Array.from({ length: told.n_tokens }, (_, i) => {
    const cell = document.createElement("i");
    if (told.selected && told.selected.includes(i)) cell.className = "on";
    cell.title = `token ${i}`;
    return cell;
  });
  $("tokens").replaceChildren(...(told.selected ? cells : []));
  $("tokens-told").textContent = `${told.tokens} of ${told.n_tokens} for ${told.task}` +
    (told.selected ? "" : ", those that matter most to it");
}

function numbers(told) {
  $("where").textContent = `${told.source} · ${told.name} · ${told.engine} on ${told.device}, ${told.precision} · ${told.fps} results a second`;
  options("task", told.tasks, told.tasks, told.task);
  const budgets = told.budgets.map((b) => (b === "own" ? "its own selection" : b));
  const values = told.budgets.slice();
  if (values.length > 1) { budgets.push("what keeps up"); values.push("auto"); }
  options("budget", budgets, values, told.budget);
  options("bundle", told.bundles, told.bundles.map((_, i) => String(i)), String(told.bundle));
  const cells = Object.entries(told.counts).map(([name, n]) => {
    const row = document.createElement("tr");
    row.append(...[name, String(n)].map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  });
  $("counts").replaceChildren(...cells);
  $("events").replaceChildren(...told.events.slice().reverse().map((event) => {
    const item = document.createElement("li");
    item.textContent = `${new Date(1000 * event.at).toLocaleTimeString()} ${event.kind}: ${event.told}`;
    return item;
  }));
  const key = JSON.stringify([told.task, told.selected, told.tokens, told.name]);
  if (last !== key) tokens(told);
  last = key;
}

// A picture is never shown as new when it is not: without a result it fades after a second, or after what the camera allows.
function health(told, lost) {
  const age = shownAt ? (performance.now() - shownAt) / 1000 : Infinity;
  const old = age > Math.max(1, (told && told.max_staleness_ms ? told.max_staleness_ms : 0) / 1000);
  $("pair").classList.toggle("old", old);
  const state = lost ? ["bad", "the camera box does not answer"] : told && told.ended ? ["bad", "the source has ended"] :
    old ? ["bad", shownAt ? `no new frame for ${age.toFixed(0)} s` : "no frame yet"] : ["ok", "live"];
  [$("health").className, $("health").textContent] = state;
}

async function change(wanted) {
  $("error").textContent = "";
  const answer = await fetch("api/change", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(wanted),
  });
  if (!answer.ok) $("error").textContent = (await answer.json()).detail;
}

async function go() {
  for (;;) {
    try {
      const answer = await fetch(`api/live?after=${after}&answer=${$("answer").checked}`);
      if (!answer.ok) throw new Error(answer.statusText);
      const bytes = await answer.arrayBuffer();
      const length = new DataView(bytes).getUint32(0);
      const told = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
      if (told.result) {
        after = told.result.frame;
        shownAt = performance.now() - 1000 * told.age_s;
        const [first, second] = told.pictures;
        show("left", new Uint8Array(bytes, 4 + length, first));
        show("right", new Uint8Array(bytes, 4 + length + first, second));
        $("said").textContent = told.result.said || "";
        $("change").textContent = told.still_levels === null ? "every frame is restored" :
          `changed by ${told.result.change ?? "?"} levels; up to ${told.still_levels} is still`;
        times.push({ end: told.result.end_to_end_ms, inference: told.result.inference_ms });
        if (times.length > KEPT) times.shift();
        plot();
      }
      if (told.counts.captured <= after) after = -1;  // the camera box has started again
      numbers(told);
      health(told, false);
      if (told.ended) await new Promise((done) => setTimeout(done, 1000));
      else await new Promise(requestAnimationFrame);
    } catch (error) {
      health(null, true);
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}

$("slider").addEventListener("input", split);
for (const kind of ["pointerdown", "pointermove"]) {
  $("pair").addEventListener(kind, (event) => {
    if (kind === "pointermove" && !event.buttons) return;
    const box = $("pair").getBoundingClientRect();
    $("slider").value = Math.round((100 * (event.clientX - box.left)) / box.width);
    split();
    event.preventDefault();
  });
}
for (const id of ["task", "budget"]) $(id).addEventListener("change", () => { change({ [id]: $(id).value }); $(id).blur(); });
$("bundle").addEventListener("change", () => { change({ bundle: Number($("bundle").value) }); $("bundle").blur(); });
split();
go();
