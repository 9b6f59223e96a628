// Renders every icon of the SVG families to a 128 px RGBA picture: node render.mjs OUT_DIR
// Emoji are named by code point (1f34e.png), so that families can be paired; other icons keep their name.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createRequire } from 'node:module'
import { Resvg } from '@resvg/resvg-js'

const require = createRequire(import.meta.url)
const FAMILIES = ['fluent-emoji-flat', 'fluent-emoji-high-contrast', 'twemoji', 'openmoji', 'flat-color-icons']
// Emoji that come without code points, named after their label: words joined by this.
const LABELLED = { 'fluent-emoji': '-', 'noto-v1': '-', 'emojione-monotone': '-', fxemoji: '' }
// The renderer aborts on these.
const UNRENDERABLE = {
  'noto-v1': [
    'person-lifting-weights', 'man-lifting-weights', 'lady-beetle', 'hot-beverage', 'cocktail-glass', 'bullet-train',
    'ambulance',
  ],
}
const SIZE = 128 // twice the base's smaller native size, so that scaled-down scenes stay sharp

const read = (path) => JSON.parse(readFileSync(require.resolve(path), 'utf8'))
const out = process.argv[2]

const emoji = read('emojibase-data/en/compact.json')
writeFileSync(join(out, 'emoji.json'), JSON.stringify(emoji))
const labelled = (joint) =>
  emoji.map(({ label, hexcode }) => [hexcode.toLowerCase(), label.toLowerCase().match(/[a-z0-9]+/g).join(joint)])

for (const family of [...FAMILIES, ...Object.keys(LABELLED)]) {
  const set = read(`@iconify-json/${family}/icons.json`)
  const chars = family in LABELLED ? labelled(LABELLED[family]) : Object.entries(read(`@iconify-json/${family}/chars.json`))
  // Code points are written with and without the variation selector; one spelling pairs the families.
  // Sequences (flags, skin tones) are left out: the families differ in which they draw.
  const names = chars.length
    ? chars.map(([code, icon]) => [code.replace(/-fe0f/g, '').replace(/^0+/, ''), icon]).filter(([code]) => !code.includes('-'))
    : Object.keys(set.icons).map((icon) => [icon, icon])
  mkdirSync(join(out, family), { recursive: true })
  for (const [name, icon] of new Map(names)) {
    const drawing = set.icons[icon] ?? set.icons[set.aliases?.[icon]?.parent]
    if (!drawing || UNRENDERABLE[family]?.includes(icon)) continue
    const width = drawing.width ?? set.width ?? 16
    const height = drawing.height ?? set.height ?? 16
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" color="black">${drawing.body}</svg>`
    const image = new Resvg(svg, { fitTo: { mode: 'width', value: SIZE } }).render()
    writeFileSync(join(out, family, `${name}.png`), image.asPng())
  }
  console.log(family, names.length)
}
