"""The looks of the timeline page: light, dark and paper.

The colours are those of Okabe and Ito, which people who see fewer colours can tell apart, too; a lighter set on dark.
"""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #151515; --soft: #595959; --line: #dcdcdc; --panel: #f6f6f4;
  --disk: #0072b2; --network: #00805c; --kill: #b84700; --good: #00704f; --bad: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --ink: #ecebe8; --soft: #a6abb0; --line: #353b41; --panel: #1c2126;
    --disk: #62baf0; --network: #3ecb9d; --kill: #ff9a5c; --good: #4bd3a6; --bad: #ff8b94; }
}
@media print {
  :root { color-scheme: light; --ground: #fff; --ink: #000; --soft: #444; --line: #ccc; --panel: #fff;
    --disk: #0072b2; --network: #00805c; --kill: #b84700; --good: #00704f; --bad: #b00020; }
  figure, tr, .facts, .verdict { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  .scroll { overflow: visible !important; }
  .scroll > svg { min-width: 0 !important; }
  main { max-width: none !important; padding: 0 !important; }
  nav { display: none; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 "DejaVu Sans", Verdana, system-ui, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: clamp(20px, 3.6vw, 28px); line-height: 1.25; margin: 0 0 6px; text-wrap: balance; }
h2 { font-size: 19px; margin: 44px 0 10px; padding-top: 10px; border-top: 2px solid var(--ink); }
h3 { font-size: 16px; margin: 26px 0 6px; }
p { margin: 6px 0; max-width: 88ch; }
header p { max-width: none; }
a { color: inherit; }
.soft, figcaption, caption { color: var(--soft); }
.soft { font-size: 13.5px; }
.verdict { margin: 14px 0 0; padding: 10px 14px; border-left: 5px solid; background: var(--panel); max-width: none; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); border-left-style: double; border-left-width: 9px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(116px, 1fr)); gap: 1px; margin: 18px 1px 0; }
.facts div { box-shadow: 0 0 0 1px var(--line); padding: 8px 12px; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; font-size: 20px; }
.facts .bad dd { color: var(--bad); font-weight: bold; text-decoration: underline; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, a:focus-visible { outline: 2px solid var(--disk); outline-offset: 2px; }
table { border-collapse: collapse; min-width: 100%; font-size: 14px; margin: 6px 0; }
caption span { position: sticky; left: 0; display: inline-block; max-width: min(100%, 100vw - 44px); }
caption { text-align: left; padding: 0 0 6px; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
thead th { border-bottom: 1.5px solid var(--ink); vertical-align: bottom; font-size: 13px; }
.n { text-align: right; }
td.wrap { white-space: normal; overflow-wrap: anywhere; }
th small, td small { color: var(--soft); font-weight: normal; font-size: 12.5px; }
.yes { color: var(--good); } .no { color: var(--bad); font-weight: bold; }
td ul { margin: 0; padding: 0; list-style: none; }
td li { padding-left: 1.5em; text-indent: -1.5em; }
td li > span:first-child { display: inline-block; width: 1.5em; text-indent: 0; font-weight: bold; }
.matrix td, .matrix th { border-left: 1px solid var(--line); padding-left: 10px; white-space: normal;
  min-width: 150px; }
.matrix th:first-child { border-left: 0; padding-left: 0; min-width: 0; }
.dead span:first-child, .never span:first-child { color: var(--bad); } .hurt span:first-child { color: var(--kill); }
.fine span:first-child { color: var(--good); }
figure { margin: 8px 0 0; }
figcaption { font-size: 13.5px; }
.zooms { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); gap: 26px 44px; }
.zooms b { color: var(--ink); }
nav ol { padding-left: 1.6em; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 6px 0 8px; padding: 0; list-style: none;
  font-size: 13px; }
.legend svg { width: 30px; height: 14px; vertical-align: -2px; margin-right: 6px; }
.scroll > svg { min-width: 720px; }
svg { display: block; width: 100%; height: auto; }
.legend svg { display: inline; }
svg text { font-size: 12.5px; fill: var(--ink); }
svg .e { text-anchor: end; } svg .m { text-anchor: middle; } svg .h { font-weight: bold; }
.axis text, .disk > .e, .network > .e { fill: var(--soft); }
.over { paint-order: stroke; stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.rule { stroke: var(--ink); stroke-width: 1; fill: none; }
.disk { --lane: var(--disk); } .network { --lane: var(--network); }
.done { fill: var(--lane); fill-opacity: .3; stroke: var(--lane); stroke-width: 1.2; }
.band { fill: var(--lane); fill-opacity: .22; }
.corrected { fill: none; stroke: var(--lane); stroke-width: 1.7; }
.uncorrected { fill: none; stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 5 3; }
.uncorrected.half { stroke-dasharray: 1.5 2.5; }
.unserved { fill: none; stroke: var(--bad); stroke-width: 1.8; }
.silent { fill: url(#hatch); stroke: var(--kill); stroke-opacity: .55; stroke-width: .8; }
.hatching { stroke: var(--kill); stroke-width: 1.3; stroke-opacity: .6; }
.kill path { stroke: var(--kill); stroke-width: 1.4; stroke-dasharray: 3 2; fill: none; }
.kill.many path { stroke-width: 1; stroke-opacity: .6; }
.kill .tip { fill: var(--kill); stroke: none; }
.kill text { fill: var(--kill); font-size: 12px; }
.step { fill: var(--ink); } .whole { fill: var(--ground); stroke: var(--ink); stroke-width: 1.5; }
.tick { stroke: var(--lane); stroke-width: 1; fill: none; }
"""

#: Referred to by every drawing of the page.
HATCH = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path class="hatching" d="M0 0V5"/></pattern></defs></svg>'
)
_SAMPLE = '<li><svg viewBox="0 0 30 14" aria-hidden="true">{}</svg>{}</li>'
LEGEND = '<ul class="legend disk">' + "".join(
    _SAMPLE.format(drawing, words)
    for drawing, words in (
        ('<g class="kill"><path d="M15 6V14"/><path class="tip" d="M10.5 0h9l-4.5 7z"/></g>', "kill"),
        ('<rect class="silent" x="1" y="1" width="28" height="12"/>', "silent: nothing was completed"),
        ('<path class="band" d="M0 2H30V12H0z"/><path class="corrected" d="M0 2H30M0 12H30"/>',
         "latency from the planned time (corrected), p50 to the longest"),
        ('<path class="uncorrected" d="M0 7H30"/>', "from the submission (uncorrected), the longest"),
        ('<path class="uncorrected half" d="M0 7H30"/>', "the same, p50"),
        ('<path class="unserved" d="M11 3l8 8m0-8l-8 8"/>', "requests that failed or were never served"),
    )
) + "</ul>"
