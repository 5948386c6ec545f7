"""The style sheet of the report: one column of cards, light or dark as the reader's system is.

It is a string and not a file, so that the page is made from the package alone and fetches
nothing. Contrast of text is at least 4.5:1 in both schemes.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f4; --card: #ffffff; --ink: #1b2420; --soft: #55615b; --rule: #dde2de;
  --accent: #0b6b57; --accent-soft: #e3f1ec; --warn: #8a4b00; --warn-soft: #fff3df;
  --line-0: #0b6b57; --line-1: #3465a8; --line-2: #8a8f8c; --bar: #9fcabc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121614; --card: #1a201d; --ink: #e7ece9; --soft: #a3afa9; --rule: #2e3733;
    --accent: #6fd0b3; --accent-soft: #17302a; --warn: #ffc273; --warn-soft: #33270f;
    --line-0: #6fd0b3; --line-1: #8db6f0; --line-2: #8b958f; --bar: #2f5f52;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif;
}
main, header.top, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header.top { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: 0 0 .75rem; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
.lead, .note, figcaption, caption { color: var(--soft); }
.note, figcaption { font-size: .9rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: 0;
  margin: .75rem 0 0; font-size: .92rem; }
section, .banner { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1.5rem; margin: 1.25rem 0; }
.banner { background: var(--warn-soft); border-color: var(--warn); color: var(--warn);
  padding: .9rem 1.5rem; }
.banner p { margin: 0; max-width: none; }
.banner strong { text-transform: uppercase; letter-spacing: .05em; font-size: .85rem; }
.claim { border-top: 4px solid var(--accent); }
.claim .sentence { font-size: 1.3rem; line-height: 1.45; max-width: none; text-wrap: pretty; }
.claim .whole { white-space: nowrap; }
section > :last-child { margin-bottom: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1px; border: 1px solid var(--rule); border-radius: 8px; overflow: hidden;
  margin: 1.25rem 0; }
.facts div { outline: 1px solid var(--rule); padding: .7rem .9rem; display: flex;
  flex-direction: column; justify-content: space-between; }
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: .1rem 0 0; font-size: 1.25rem; font-weight: 600;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.facts .chief dd { color: var(--accent); font-size: 1.7rem; line-height: 1.2; }
.verdict { border-left: 4px solid var(--accent); background: var(--accent-soft);
  padding: .6rem .9rem; border-radius: 0 6px 6px 0; }
.verdict.bad { border-color: var(--warn); background: var(--warn-soft); color: var(--warn); }
.scroll { overflow-x: auto; margin: 0 -.25rem 1rem; padding: 0 .25rem; }
table.narrow { max-width: 30rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; padding-bottom: .5rem; font-size: .9rem; }
th, td { text-align: left; padding: .45rem .75rem .45rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: middle; }
thead th { color: var(--soft); font-weight: 600; font-size: .82rem; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: nowrap; }
td.num { white-space: nowrap; }
td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; padding-left: .75rem; }
tbody tr:last-child > * { border-bottom: 0; }
tr.own > * { background: var(--accent-soft); }
tr.own > :first-child { box-shadow: inset 3px 0 0 var(--accent); padding-left: .75rem; }
td.bar { width: 34%; padding-right: 0; }
td.bar span { display: block; height: .8rem; min-width: 2px; border-radius: 3px;
  background: var(--bar); }
.sets { display: flex; flex-wrap: wrap; align-items: flex-end; gap: .5rem 1.75rem;
  margin-top: 1rem; }
.sets .scroll { max-width: 100%; }
.grid-table { width: auto; }
.grid-table caption { color: var(--ink); font-weight: 600; }
.grid-table thead { display: none; }
.grid-table td, .grid-table tbody th { border-bottom: 0; padding-top: .2rem;
  padding-bottom: .2rem; }
.audit { table-layout: fixed; min-width: 46rem; }
.audit th:nth-child(1) { width: 34%; } .audit th:nth-child(2) { width: 25%; }
.audit th:nth-child(4) { width: 9%; } .audit th:nth-child(5) { width: 10%; }
.audit th, .audit td { vertical-align: top; overflow-wrap: anywhere; white-space: normal; }
.audit tbody th { font-weight: 400; }
.audit small { display: block; color: var(--soft); font-weight: 600; }
.audit .failed { color: var(--warn); font-weight: 700; }
img { display: block; max-width: none; }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(16.5rem, 1fr));
  gap: 1rem 1.5rem; padding: 0; margin: 1rem 0; list-style: none; }
.strips figure { margin: 0; }
.strips .steps { display: flex; align-items: center; gap: .55rem; }
.strips .steps span { color: var(--soft); }
.chart { margin: 1rem 0 0; }
svg { width: 100%; height: auto; display: block; max-width: 46rem; }
svg text { fill: var(--soft); font: 12px system-ui, "Liberation Sans", sans-serif; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .budget { stroke: var(--warn); stroke-width: 1.5; stroke-dasharray: 6 4; }
svg .budget-label { fill: var(--warn); }
svg .line { fill: none; stroke-width: 2.25; stroke-linejoin: round; }
svg .line-0 { stroke: var(--line-0); } svg .line-1 { stroke: var(--line-1);
  stroke-dasharray: 7 3; } svg .line-2 { stroke: var(--line-2); stroke-dasharray: 2 3; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0;
  margin: .5rem 0; font-size: .9rem; }
.legend svg { width: 2rem; height: .5rem; display: inline-block; vertical-align: middle;
  margin-right: .4rem; }
code { font: .88em ui-monospace, "Liberation Mono", monospace; overflow-wrap: anywhere; }
pre { background: var(--page); border: 1px solid var(--rule); border-radius: 6px;
  padding: .75rem 1rem; overflow-x: auto; margin: .5rem 0 1rem; }
footer { color: var(--soft); font-size: .88rem; padding-bottom: 3rem; }
@media (max-width: 40rem) { section { padding: 1.1rem; }
  td.bar, th.bar { display: none; }
  .claim .sentence { font-size: 1.12rem; } }
@page { size: A4; margin: 15mm 14mm; }
@media print {
  :root { --page: #f5f6f4; --card: #ffffff; --ink: #1b2420; --soft: #55615b; --rule: #dde2de;
    --accent: #0b6b57; --accent-soft: #e3f1ec; --warn: #8a4b00; --warn-soft: #fff3df;
    --line-0: #0b6b57; --line-1: #3465a8; --line-2: #8a8f8c; --bar: #9fcabc; }
  html { font-size: 12px; } body { background: #fff; font-size: 12px; line-height: 1.45; }
  nav { display: none; }
  main, header.top, footer { max-width: none; padding: 0; } p { max-width: none; }
  section { border-width: 1px 0 0; border-radius: 0; padding: .9rem 0 .2rem; margin: .7rem 0; }
  section.claim { border-top-width: 3px; }
  .facts { margin: .8rem 0; } th, td { padding-top: .25rem; padding-bottom: .25rem; }
  #signature { break-inside: avoid; }
  .scroll { overflow: visible; margin: 0 0 .8rem; padding: 0; }
  pre { overflow: visible; white-space: pre-wrap; overflow-wrap: anywhere; }
  .audit { min-width: 0; }
  h2, h3, caption { break-after: avoid; } p { orphans: 3; widows: 3; }
  tr, pre, figure, .facts, .banner, .verdict, .sets .scroll { break-inside: avoid; } }
"""
