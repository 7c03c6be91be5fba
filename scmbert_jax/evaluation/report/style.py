"""The report's style sheet: system fonts, light and dark, one column on a narrow screen."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b2129; --soft: #5a6572;
  --line: #dde2e8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12151a; --card: #1a1f26; --ink: #e6eaef; --soft: #9aa6b3; --line: #313a45; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h2 + h3 { margin-top: 0; }
p { margin: 0 0 .75rem; color: var(--soft); max-width: 75ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.4rem;
  margin-bottom: 1.25rem; }
ul { margin: 0; padding-left: 1.2rem; }
li { margin: .25rem 0; max-width: 85ch; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 60%; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; }
tr.group td { border-top: 2px solid var(--line); }
.number { text-align: right; }
tbody td { padding-top: .28rem; padding-bottom: .28rem; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; }
.pair figcaption { order: -1; color: var(--ink); font-weight: 600; }
figcaption { color: var(--soft); font-size: .9rem; margin: .25rem 0; }
.plot { width: 100%; height: auto; display: block; color: var(--ink); }
.plot text { font-family: inherit !important; }
.plot g[id*="number-"] text { paint-order: stroke; stroke: var(--card); stroke-width: 3.5px; stroke-linejoin: round; }
.legend { list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr));
  gap: .15rem 1rem; padding: 0; margin: .25rem 0 1rem; font-size: .92rem; }
.legend li { margin: 0; }
.legend b { display: inline-block; min-width: 1.1em; }
.swatch { width: 13px; height: 13px; vertical-align: -1px; margin-right: .3rem; }
.count { color: var(--soft); font-size: .85em; }
dl { display: grid; grid-template-columns: minmax(120px, max-content) minmax(0, 1fr); gap: .3rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { overflow-x: auto; margin: .4rem 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 700px) {
  main { padding: 1rem .6rem 2rem; }
  section { padding: 1rem .9rem; }
  .pair, dl { grid-template-columns: minmax(0, 1fr); }
  dt { margin-top: .4rem; }
}
@media print { section { break-inside: avoid; border: 0; } }
"""
