"""The report's style sheet: system fonts, one column, light and dark."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #16181d; --quiet: #666b75; --line: #e4e4df; --grid: #ecece8;
  --heat: #2a78d6; --good: #0d7d52; --bad: #c4372c; --goodwash: #e3f4ec; --badwash: #fbe9e7;
  --c0: #2a78d6; --c1: #e0662f; --c2: #17936a; --c3: #8a57c9; --c4: #c99a06; --c5: #d6508a; }
@media (prefers-color-scheme: dark) { :root {
  --page: #111316; --card: #191c20; --ink: #eceef1; --quiet: #9aa1ac; --line: #2b3036; --grid: #262a30;
  --heat: #3987e5; --good: #4cc38a; --bad: #f2766b; --goodwash: #16301f; --badwash: #3a1c1a;
  --c0: #4f97ec; --c1: #ee7f4c; --c2: #35b489; --c3: #a67ce0; --c4: #dcb22c; --c5: #e670a4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 44px 28px 72px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.02em; margin: 2px 0 6px; font-weight: 680; }
h2 { font-size: 19px; letter-spacing: -.01em; margin: 46px 0 4px; font-weight: 650; }
h3 { font-size: 14px; margin: 0 0 8px; font-weight: 620; }
p { margin: 0 0 14px; max-width: 92ch; }
.quiet, figcaption { color: var(--quiet); }
.brand { font-size: 13px; font-weight: 650; letter-spacing: .09em; color: var(--quiet); text-transform: uppercase; }
.verdict { display: inline-block; vertical-align: 4px; margin-left: 10px; padding: 2px 12px; border-radius: 99px;
  font-size: 14px; font-weight: 640; letter-spacing: 0; }
.verdict.good { color: var(--good); background: var(--goodwash); }
.verdict.bad { color: var(--bad); background: var(--badwash); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px; margin: 22px 0 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.facts div { background: var(--card); padding: 13px 18px 12px; min-width: 0; }
.facts dt { font-size: 12.5px; color: var(--quiet); }
.facts dd { margin: 0; font-size: 21px; font-weight: 640; letter-spacing: -.01em; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
dl { margin: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; }
.scroll { overflow-x: auto; padding: 8px 12px 12px; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
.grid2 > .card { min-width: 0; }
table { border-collapse: separate; border-spacing: 2px; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 560; font-size: 12.5px; color: var(--quiet); text-align: center; padding: 6px;
  white-space: nowrap; }
th.row { text-align: left; color: var(--ink); font-size: 14px; padding-left: 8px; }
th.row small { color: var(--quiet); font-weight: 400; margin-left: 6px; font-size: 12.5px; }
td { text-align: center; padding: 6px 6px; white-space: nowrap; border-radius: 5px; font-size: 14px; }
td small { color: inherit; opacity: .62; font-size: 11.5px; margin-left: 3px; }
td.heat { background: color-mix(in oklab, var(--heat) calc(var(--v) * 62%), var(--card)); }
td.worse { outline: 2px solid var(--bad); outline-offset: -2px; }
td.lower::after { content: " \\25BC"; color: var(--bad); font-size: 9px; vertical-align: 1px; }
td.plain { color: var(--quiet); }
td.left { text-align: left; white-space: normal; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
tr.final td:last-child { font-weight: 600; }
.lines td, .lines th { border-bottom: 1px solid var(--line); border-radius: 0; }
.lines { border-spacing: 0; } .lines tr:last-child > * { border-bottom: 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--quiet); stroke-opacity: .55; }
svg .reference { stroke: var(--quiet); stroke-dasharray: 4 4; }
svg path { fill: none; stroke-linejoin: round; stroke-linecap: round; stroke-width: 2; }
svg path.raw { stroke-width: 1; opacity: .26; }
path.s0 { stroke: var(--c0); } path.s1 { stroke: var(--c1); } path.s2 { stroke: var(--c2); }
path.s3 { stroke: var(--c3); } path.s4 { stroke: var(--c4); } path.s5 { stroke: var(--c5); }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: 3px; }
.key.s0 { background: var(--c0); } .key.s1 { background: var(--c1); } .key.s2 { background: var(--c2); }
.key.s3 { background: var(--c3); } .key.s4 { background: var(--c4); } .key.s5 { background: var(--c5); }
.legend { display: flex; flex-wrap: wrap; gap: 3px 16px; font-size: 12.5px; color: var(--quiet); margin: 6px 0 0 46px; }
.charthead { display: flex; justify-content: space-between; align-items: baseline; gap: 12px; }
.charthead span { color: var(--quiet); font-size: 13px; }
.bar { display: grid; grid-template-columns: 124px 1fr 92px; gap: 12px; align-items: center;
  padding: 3px 0; font-size: 13.5px; }
.bar .track { height: 14px; border-radius: 3px; } .bar .fill { display: block; height: 100%; background: var(--heat);
  border-radius: 0 3px 3px 0; min-width: 1px; }
.bar .value { text-align: right; font-variant-numeric: tabular-nums; color: var(--quiet); }
.served { display: flex; gap: 22px; align-items: center; flex-wrap: wrap; margin-top: 16px; }
.served img { height: 76px; image-rendering: pixelated; border-radius: 6px; border: 1px solid var(--line); }
.served dl { display: grid; grid-template-columns: auto 1fr; gap: 1px 16px; } .served dt { color: var(--quiet); }
.served dd { margin: 0; font-weight: 560; }
ul.reasons { margin: 10px 0 0; padding-left: 20px; }
.versions { columns: 3 220px; column-gap: 32px; }
.versions div { display: flex; justify-content: space-between; gap: 10px;
  border-bottom: 1px solid var(--line); padding: 4px 0; break-inside: avoid; font-size: 13.5px; }
.versions dd { margin: 0; font-variant-numeric: tabular-nums; text-align: right; overflow-wrap: anywhere; }
.versions dt { color: var(--quiet); }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
