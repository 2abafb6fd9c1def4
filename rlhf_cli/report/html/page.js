// The script of a report: unpacks what the page carries, draws a plot when it comes into view, sorts and searches tables.
(function () {
  "use strict";

  // Okabe and Ito's colours, which colour-blind people can tell apart; lines differ in their dashes too.
  const COLOURS = {
    light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#444444"],
    dark: ["#56b4e9", "#e69f00", "#2fc79a", "#e59ac4", "#f0e442", "#bbbbbb"],
  };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "x", "cross"];
  const STRONG_NATS = 2; // the KL of a token that has the full colour
  const MOST_ROWS = 300; // of a plot's figures
  const root = document.documentElement;
  let data = null;
  let smoothing = 0;

  function isDark() {
    const chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function notice(text) {
    const place = document.getElementById("notice");
    place.textContent = text;
    place.hidden = false;
  }

  async function unpacked(id) {
    const packed = atob(document.getElementById(id).textContent);
    const bytes = Uint8Array.from(packed, (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // A running mean that weighs older steps less; it starts without the pull of an invented first value.
  function smoothed(values, weight) {
    let last = 0;
    let scale = 0;
    return values.map((value) => {
      if (value === null) return null;
      last = last * weight + value * (1 - weight);
      scale = scale * weight + (1 - weight);
      return last / scale;
    });
  }

  function errors(line, colour) {
    if (!line.low) return undefined;
    return {
      type: "data", symmetric: false, color: colour, thickness: 1.5,
      array: line.y.map((y, i) => line.high[i] - y), arrayminus: line.y.map((y, i) => y - line.low[i]),
    };
  }

  // Names stand in Plotly's little markup; a run's own name must not.
  function plain(text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function traces(plot) {
    const colours = COLOURS[isDark() ? "dark" : "light"];
    const found = [];
    plot.lines.forEach((line, place) => {
      const colour = colours[place % colours.length];
      const dash = DASHES[(place + Math.floor(place / colours.length)) % DASHES.length];
      const base = { name: plain(line.name), x: line.x.map((x) => (typeof x === "string" ? plain(x).slice(0, 60) : x)), y: line.y, meta: place, text: (line.text || []).map(plain) };
      const hover = (line.text ? "%{text}: " : "") + "%{y:.5g}";
      if (line.kind === "bars") {
        found.push({ ...base, type: "bar", marker: { color: colour }, opacity: 0.75, error_y: errors(line, colours[5]), hovertemplate: hover, textposition: "none" });
      } else if (line.kind === "area") {
        found.push({ ...base, type: "scatter", mode: "lines", stackgroup: "all", line: { color: colour, width: 1 }, hovertemplate: hover });
      } else if (line.kind === "points" || line.kind === "path") {
        const marker = { color: line.colours || colour, size: line.kind === "path" ? 7 : 8, symbol: SYMBOLS[place % SYMBOLS.length] };
        if (line.colours) Object.assign(marker, { colorscale: isDark() ? "Plasma" : "Viridis", colorbar: { title: { text: "step" }, thickness: 10 }, size: 6 });
        const mode = line.colours ? "markers" : "lines+markers";
        found.push({ ...base, type: "scatter", mode, marker, line: { color: colour, dash, width: 1.5 }, error_y: errors(line, colour), hovertemplate: hover });
      } else {
        const weak = smoothing > 0 && line.smooth;
        const alone = line.y.length === 1;
        found.push({ ...base, type: "scatter", mode: alone ? "markers" : "lines", line: { color: colour, dash, width: 2 }, hovertemplate: hover, y: weak ? smoothed(line.y, smoothing) : line.y });
        if (weak) found.push({ ...base, type: "scatter", mode: "lines", line: { color: colour, width: 1 }, opacity: 0.25, hoverinfo: "skip", showlegend: false });
      }
    });
    return found;
  }

  function layout(plot, log) {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
    const annotations = plot.marks.map((mark) => ({
      x: mark.x, y: log && mark.y > 0 ? Math.log10(mark.y) : mark.y, text: plain(mark.text), showarrow: true, arrowhead: 2, ax: 0, ay: -35,
      bgcolor: colour("--back"), bordercolor: colour("--accent"), font: { size: 11, color: colour("--text") },
    }));
    return {
      margin: { l: 10, r: 10, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--text"), size: 12 }, annotations, barmode: "overlay",
      showlegend: plot.lines.length > 1, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, bgcolor: "rgba(0,0,0,0)" },
      hovermode: plot.lines.some((line) => line.colours || line.kind === "path") ? "closest" : "x unified",
      hoverlabel: { bgcolor: colour("--back"), font: { color: colour("--text") } },
      uirevision: log ? "log" : "linear", // a zoom outlives smoothing and themes
      xaxis: { ...axis, title: { text: plain(plot.x) }, ...(plot.lines.some((line) => typeof line.x[0] === "string") ? { type: "category" } : {}) },
      yaxis: { ...axis, title: { text: plain(plot.y) }, type: log ? "log" : "linear" },
    };
  }

  function draw(figure) {
    const plot = data.plots[Number(figure.dataset.plot)];
    const canvas = figure.querySelector(".canvas");
    const log = figure.querySelector(".log").getAttribute("aria-pressed") === "true";
    const config = { responsive: true, displaylogo: false, displayModeBar: false };
    figure.dataset.drawn = "";
    return Plotly.react(canvas, traces(plot), layout(plot, log), config).then(() => {
      figure.dataset.drawn = "yes";
    });
  }

  function redraw() {
    document.querySelectorAll("figure[data-drawn]").forEach(draw);
  }

  // Arrow keys read a plot point by point, for those who see no curves or use no mouse.
  function reads(figure) {
    const plot = data.plots[Number(figure.dataset.plot)];
    const canvas = figure.querySelector(".canvas");
    const reading = figure.querySelector(".reading");
    let line = 0;
    let place = -1;

    function say() {
      const one = plot.lines[line];
      const y = one.y[place];
      const said = one.text ? `${one.text[place]}, ` : "";
      reading.textContent = `${one.name}: ${said}${plot.x} ${one.x[place]}, ${y === null ? "none" : Number(y.toPrecision(5))}`;
      const trace = canvas.data.findIndex((each) => each.meta === line);
      Plotly.Fx.hover(canvas, [{ curveNumber: trace, pointNumber: place }]);
    }

    function zoom(factor) {
      const axis = canvas._fullLayout.xaxis;
      const [low, high] = axis.range.map(Number);
      const half = ((high - low) / 2) * factor;
      const middle = (low + high) / 2;
      Plotly.relayout(canvas, { "xaxis.range": [middle - half, middle + half] });
    }

    const save = () => Plotly.downloadImage(canvas, { format: "png", scale: 2, width: 900, height: 500, filename: plot.title });
    const showAll = () => Plotly.relayout(canvas, { "xaxis.autorange": true, "yaxis.autorange": true });
    const switchLog = () => {
      const button = figure.querySelector(".log");
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "true" ? "false" : "true");
      draw(figure);
    };
    const step = (by) => {
      const last = plot.lines[line].x.length - 1;
      place = Math.min(Math.max(place + by, 0), last);
      say();
    };
    const change = (by) => {
      line = (line + by + plot.lines.length) % plot.lines.length;
      place = Math.max(place, 0);
      step(0);
    };
    const keys = {
      ArrowRight: () => step(1), ArrowLeft: () => step(-1), ArrowDown: () => change(1), ArrowUp: () => change(-1),
      Home: () => step(-Infinity), End: () => step(Infinity), "+": () => zoom(0.5), "-": () => zoom(2), 0: showAll, l: switchLog, L: switchLog,
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
    figure.querySelector(".all").addEventListener("click", showAll);
    figure.querySelector(".log").addEventListener("click", switchLog);
    figure.querySelector(".save").addEventListener("click", save);
    const numbers = figure.querySelector(".numbers");
    numbers.addEventListener("toggle", () => {
      if (numbers.open && !numbers.querySelector("table")) numbers.querySelector("div").append(figures(plot));
    });
  }

  function cell(row, tag, text) {
    const made = document.createElement(tag);
    made.textContent = text;
    if (tag === "th") made.scope = "col";
    row.append(made);
  }

  // The figures of a plot as a table: every line, and of long ones every so many points.
  function figures(plot) {
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    ["", plot.x, plot.y || "value"].forEach((name) => cell(head, "th", name));
    const body = table.createTBody();
    const most = Math.ceil(MOST_ROWS / plot.lines.length);
    plot.lines.forEach((line) => {
      const every = Math.ceil(line.x.length / most);
      line.x.forEach((x, place) => {
        if (place % every && place !== line.x.length - 1) return;
        const row = body.insertRow();
        [line.name, x, line.y[place] === null ? "-" : line.y[place]].forEach((value) => cell(row, "td", value));
      });
    });
    return table;
  }

  // Do something with each element once it comes into view.
  function whenSeen(selector, act) {
    const seen = new IntersectionObserver(
      (entries) => {
        entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
          seen.unobserve(entry.target);
          act(entry.target);
        });
      },
      { rootMargin: "300px" },
    );
    document.querySelectorAll(selector).forEach((element) => seen.observe(element));
  }

  function value(row, column) {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.value === "" || isNaN(cell.dataset.value) ? null : Number(cell.dataset.value);
  }

  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function sorts(table) {
    table.querySelectorAll("thead button").forEach((button) => {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row) => [value(row, head.cellIndex), row]);
        rows.sort(([a], [b]) => (a === null || b === null || up ? compare(a, b) : compare(b, a)));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  function searches(block) {
    const table = block.querySelector("table");
    const field = block.querySelector("input[type=search]");
    const mode = block.querySelector("select");
    const status = block.querySelector(".search [role=status]");
    const texts = new Map([...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]));
    const filter = () => {
      const wanted = field.value.toLowerCase().trim();
      let shown = 0;
      texts.forEach((text, row) => {
        row.hidden = !text.includes(wanted) || (mode !== null && mode.value !== "" && row.dataset.mode !== mode.value);
        shown += !row.hidden;
      });
      status.textContent = shown === texts.size ? `${shown} rows` : `${shown} of ${texts.size} rows`;
    };
    field.addEventListener("input", filter);
    if (mode) mode.addEventListener("change", filter);
    sorts(table);
  }

  function nats(kl) {
    return typeof kl === "number" ? `${kl > 0 ? "+" : ""}${kl.toFixed(2)} nats` : "not finite";
  }

  function token(piece, kl) {
    const span = document.createElement("span");
    const size = typeof kl === "number" ? Math.min(Math.abs(kl) / STRONG_NATS, 1) : 0;
    span.textContent = piece;
    span.title = nats(kl);
    if (size > 0.02) {
      span.className = `heat${kl < 0 ? " less" : ""}${size === 1 ? " strong" : ""}`;
      span.style.setProperty("--k", size.toFixed(2));
    }
    return span;
  }

  // An answer, token by token in the colour of its KL, which a click or an arrow key reads out.
  function heat(place) {
    const [pieces, kl] = data.pieces[Number(place.dataset.pieces)];
    if (!pieces.length) return;
    const reading = place.closest(".answers").querySelector(".token");
    const spans = pieces.map((piece, i) => token(piece, kl[i]));
    let at = -1;
    function read(next) {
      if (at >= 0) spans[at].classList.remove("read");
      at = Math.min(Math.max(next, 0), spans.length - 1);
      spans[at].classList.add("read");
      reading.textContent = `token ${at + 1} of ${spans.length}, "${pieces[at]}": ${nats(kl[at])}`;
    }
    place.replaceChildren(...spans);
    place.tabIndex = 0;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", "Answer now; arrow keys read the KL of its tokens");
    place.addEventListener("click", (event) => {
      if (spans.includes(event.target)) read(spans.indexOf(event.target));
    });
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    place.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      read(at + steps[event.key]);
    });
  }

  function setTheme(dark) {
    root.dataset.theme = dark ? "dark" : "light";
    showTheme();
    redraw();
  }

  function showTheme() {
    document.getElementById("theme").setAttribute("aria-pressed", String(isDark()));
  }

  function controls() {
    const slider = document.getElementById("smoothing");
    slider.addEventListener("input", () => {
      smoothing = Number(slider.value);
      document.getElementById("smoothing-value").textContent = slider.value;
    });
    slider.addEventListener("change", redraw);
    document.getElementById("theme").addEventListener("click", () => setTheme(!isDark()));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      showTheme();
      redraw();
    });
    showTheme();
  }

  async function start() {
    document.querySelectorAll(".searchable").forEach(searches);
    controls();
    if (typeof DecompressionStream === "undefined") {
      notice("This browser is too old to draw the plots; the tables work.");
      return;
    }
    data = JSON.parse(await unpacked("data"));
    const script = document.createElement("script");
    script.textContent = await unpacked("plotly");
    document.head.append(script);
    document.querySelectorAll("#plotly, #data").forEach((element) => element.remove());
    whenSeen("figure.plot", draw);
    document.querySelectorAll("figure.plot").forEach(reads);
    whenSeen("[data-pieces]", heat);
    root.dataset.ready = "yes";
  }

  start().catch((error) => {
    notice(`The plots could not be drawn: ${error}`);
    throw error;
  });
})();
