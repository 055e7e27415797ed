"use strict";
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const narrow = window.matchMedia("(max-width: 800px)").matches;
  const common = {
    margin: { l: 54, r: 12, t: 8, b: 36 },
    font: { family: "system-ui, 'DejaVu Sans', sans-serif", size: 12, color: "#1b2430" },
    hovermode: "x unified",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    legend: { orientation: "h", y: -0.22, x: 0, traceorder: "normal", font: { size: 11 } },
    dragmode: narrow ? false : "zoom",
  };
  const axis = { gridcolor: "#e8ecef", zerolinecolor: "#c5ccd3", automargin: true };
  const steps = { ...axis, title: { text: "step", standoff: 4 }, rangemode: "normal" };
  charts.forEach(function (chart, index) {
    const layout = {
      ...common,
      ...chart.layout,
      xaxis: { ...steps, ...(chart.layout.xaxis || {}) },
      yaxis: { ...axis, ...(chart.layout.yaxis || {}) },
      showlegend: chart.traces.filter((t) => t.showlegend !== false).length > 1,
    };
    if (layout.height) document.getElementById("plot-" + index).style.height = layout.height + "px";
    const look = { responsive: true, displaylogo: false, displayModeBar: false };
    Plotly.newPlot("plot-" + index, chart.traces, layout, look);
  });
})();
