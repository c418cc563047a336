"use strict";
{
  const { config, specs } = JSON.parse(document.getElementById("plots").textContent);

  // Expressions are interpreted: the page's policy forbids to make code from text.
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    ast: true,
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
    config,
  };
  const drawn = [...document.querySelectorAll("[data-plot]")].map((place) =>
    vegaEmbed(place, specs[place.dataset.plot], options).then(() => place.classList.add("drawn")),
  );
  Promise.all(drawn).then(() => document.body.classList.add("ready"));

  document.getElementById("theme").addEventListener("change", (event) => {
    document.documentElement.style.colorScheme = event.target.value;
  });

  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.firstElementChild.addEventListener("click", () => sortBy(table, headings, column));
    });
  }

  function sortBy(table, headings, column) {
    const isRising = headings[column].getAttribute("aria-sort") !== "ascending";
    const read = (row) => row.cells[column].dataset.value;
    const compare = (one, other) => {
      const difference = Number(read(one)) - Number(read(other));
      return Number.isNaN(difference) ? read(one).localeCompare(read(other)) : difference;
    };
    const rows = [...table.tBodies[0].rows].sort((one, other) => (isRising ? compare(one, other) : compare(other, one)));
    table.tBodies[0].append(...rows);
    headings.forEach((heading) => heading.setAttribute("aria-sort", "none"));
    headings[column].setAttribute("aria-sort", isRising ? "ascending" : "descending");
  }

  for (const figure of document.querySelectorAll(".compare")) {
    const slider = figure.querySelector("input");
    slider.addEventListener("input", () => figure.style.setProperty("--cut", `${slider.value}%`));
  }
}
