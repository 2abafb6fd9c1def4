// The script of a report: unpacks the data of the page, draws plots when they come into view, and sorts and searches tables.
(function () {
  "use strict";

  const FULL_COLOUR_NATS = 2; // the KL of a token that has the full colour
  const MAX_ROWS = 300; // of a plot's table of values
  const root = document.documentElement;
  let data = null;
  let smoothing = 0;

  async function unpack(id) {
    const packed = atob(document.getElementById(id).textContent);
    const bytes = Uint8Array.from(packed, (char) => char.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  function notify(text) {
    const element = document.getElementById("notice");
    element.textContent = text;
    element.hidden = false;
  }

  // An exponential moving average without the bias of its first value.
  function smoothed(values) {
    let sum = 0;
    let weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = sum * smoothing + value * (1 - smoothing);
      weight = weight * smoothing + (1 - smoothing);
      return sum / weight;
    });
  }

  // Plotly reads some HTML tags in texts; those of a run must stay text.
  function escaped(value) {
    if (typeof value !== "string") return value;
    return value.slice(0, 100).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function traces(plot) {
    return plot.data.flatMap((raw) => {
      const trace = { ...raw, name: escaped(raw.name), x: raw.x.map(escaped) };
      if (raw.text) trace.text = raw.text.map(escaped);
      if (!smoothing || raw.meta !== "smooth") return [trace];
      const pale = { opacity: 0.25, hoverinfo: "skip", hovertemplate: null, showlegend: false, line: { ...raw.line, width: 1, dash: "solid" } };
      return [{ ...trace, y: smoothed(raw.y) }, { ...trace, ...pale }];
    });
  }

  function draw(figure) {
    const plot = data.plots[figure.dataset.plot];
    const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
    const isLog = figure.querySelector(".log").getAttribute("aria-pressed") === "true";
    const layout = {
      ...plot.layout,
      margin: { l: 10, r: 40, t: 30, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--text"), size: 12 }, hoverlabel: { bgcolor: colour("--back") },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, bgcolor: "rgba(0,0,0,0)" },
      modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: colour("--faint"), activecolor: colour("--text") },
      uirevision: String(isLog), // keeps the zoom when the plot is smoothed or the theme changes
      xaxis: { ...axis, ...plot.layout.xaxis }, yaxis: { ...axis, ...plot.layout.yaxis, type: isLog ? "log" : "linear" },
    };
    const config = {
      responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["select2d", "lasso2d"],
      showSendToCloud: false, // the page must not offer to send the data of a run anywhere
      toImageButtonOptions: { format: "png", scale: 2, width: 900, height: 500, filename: plot.title },
    };
    figure.dataset.drawn = "";
    return Plotly.react(figure.querySelector(".canvas"), traces(plot), layout, config).then(() => {
      figure.dataset.drawn = "yes";
    });
  }

  const redraw = () => document.querySelectorAll("figure[data-drawn]").forEach(draw);

  function controlPlot(figure) {
    const log = figure.querySelector(".log");
    log.addEventListener("click", () => {
      log.setAttribute("aria-pressed", String(log.getAttribute("aria-pressed") !== "true"));
      draw(figure);
    });
    const values = figure.querySelector(".values");
    values.addEventListener("toggle", () => {
      if (values.open && !values.querySelector("table")) values.querySelector("div").append(valueTable(data.plots[figure.dataset.plot]));
    });
  }

  // The values of every trace as a table; of a long trace, only some.
  function valueTable(plot) {
    const table = document.createElement("table");
    const addRow = (section, tag, cells) => {
      const row = section.insertRow();
      cells.forEach((text) => { row.appendChild(document.createElement(tag)).textContent = text; });
    };
    addRow(table.createTHead(), "th", ["", plot.layout.xaxis.title.text, plot.layout.yaxis.title.text || "value"]);
    const body = table.createTBody();
    plot.data.forEach((trace) => {
      const every = Math.ceil((trace.x.length * plot.data.length) / MAX_ROWS);
      trace.x.forEach((x, i) => {
        if (i % every === 0 || i === trace.x.length - 1) addRow(body, "td", [trace.name, x, trace.y[i] ?? "-"]);
      });
    });
    return table;
  }

  // Call a function with each element when it first comes into view.
  function whenVisible(selector, act) {
    const observer = new IntersectionObserver((entries) => {
      entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
        observer.unobserve(entry.target);
        act(entry.target);
      });
    }, { rootMargin: "300px" });
    document.querySelectorAll(selector).forEach((element) => observer.observe(element));
  }

  function cellValue(row, column) {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.value === "" || isNaN(cell.dataset.value) ? null : Number(cell.dataset.value);
  }

  function sortBy(head) {
    const isUp = head.getAttribute("aria-sort") !== "ascending";
    const body = head.closest("table").tBodies[0];
    head.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [cellValue(row, head.cellIndex), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // missing values come last
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      return isUp ? order : -order;
    });
    body.append(...rows.map(([, row]) => row));
  }

  function controlTable(block) {
    const [field, mode, status] = ["input[type=search]", "select", ".search [role=status]"].map((css) => block.querySelector(css));
    const rows = [...block.querySelector("tbody").rows].map((row) => [row.textContent.toLowerCase(), row]);
    const filter = () => {
      const wanted = field.value.toLowerCase().trim();
      rows.forEach(([text, row]) => { row.hidden = !text.includes(wanted) || !(row.dataset.mode || "").startsWith(mode ? mode.value : ""); });
      const numShown = rows.filter(([, row]) => !row.hidden).length;
      status.textContent = numShown === rows.length ? `${numShown} rows` : `${numShown} of ${rows.length} rows`;
    };
    field.addEventListener("input", filter);
    if (mode) mode.addEventListener("change", filter);
    block.querySelectorAll("thead button").forEach((button) => button.addEventListener("click", () => sortBy(button.closest("th"))));
  }

  // Split a response into tokens with the colour of their KL; a click shows the KL of a token.
  function colourTokens(element) {
    const [tokens, kls] = data.responses[element.dataset.response];
    const reading = element.closest(".responses").querySelector(".token");
    const spans = tokens.map((token, i) => {
      const kl = kls[i];
      const span = document.createElement("span");
      const strength = typeof kl === "number" ? Math.min(Math.abs(kl) / FULL_COLOUR_NATS, 1) : 0;
      span.textContent = token;
      span.title = typeof kl === "number" ? `${kl > 0 ? "+" : ""}${kl.toFixed(2)} nats` : "not finite";
      if (strength > 0.02) span.className = `heat${kl < 0 ? " less" : ""}${strength === 1 ? " strong" : ""}`;
      span.style.setProperty("--k", strength.toFixed(2));
      span.addEventListener("click", () => { reading.textContent = `token ${i + 1} of ${tokens.length}, "${token}": ${span.title}`; });
      return span;
    });
    if (spans.length) element.replaceChildren(...spans);
  }

  function controlPage() {
    const [slider, theme] = ["smoothing", "theme"].map((id) => document.getElementById(id));
    const system = matchMedia("(prefers-color-scheme: dark)");
    const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const showTheme = () => { theme.setAttribute("aria-pressed", String(isDark())); redraw(); };
    slider.addEventListener("input", () => {
      smoothing = Number(slider.value);
      document.getElementById("smoothing-value").textContent = slider.value;
    });
    slider.addEventListener("change", redraw);
    theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; showTheme(); });
    system.addEventListener("change", showTheme);
    showTheme();
  }

  async function start() {
    document.querySelectorAll(".searchable").forEach(controlTable);
    controlPage();
    if (typeof DecompressionStream === "undefined") {
      notify("This browser is too old to draw the plots; the tables work.");
      return;
    }
    data = JSON.parse(await unpack("data"));
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
    document.querySelectorAll("#plotly, #data").forEach((element) => element.remove());
    document.querySelectorAll("figure.plot").forEach(controlPlot);
    whenVisible("figure.plot", draw);
    whenVisible("[data-response]", colourTokens);
    root.dataset.ready = "yes";
  }

  start().catch((error) => {
    notify(`The plots could not be drawn: ${error}`);
    throw error;
  });
})();
