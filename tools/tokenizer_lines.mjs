// The text on which tokenizers are compared: some 10,700 lines (a line may hold line breaks) of words from
// tests/data/files/tokenizer/words.txt and of code points, mixed by a small generator with a fixed seed. The
// same on every machine. Code points are of blocks that have long been complete, so that the Unicode version
// of a tokenizer does not matter.
import { readFileSync } from 'node:fs';

// Marsaglia's xorshift32.
class Random {
  constructor(seed) { this.state = seed; }
  next() {
    let x = this.state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.state = x >>> 0;
    return this.state;
  }
  below(n) { return this.next() % n; }
  between(low, high) { return low + this.below(high - low + 1); }
  of(list) { return list[this.below(list.length)]; }
  chance(percent) { return this.below(100) < percent; }
}

function readWords(path) {
  const languages = {};
  for (const line of readFileSync(path, 'utf8').split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const [name, ...words] = line.split(' ');
    languages[name] = words;
  }
  return languages;
}

const point = (...codes) => String.fromCodePoint(...codes);
const many = (count, make) => Array.from({ length: count }, make);

const SPACES = [' ', '  ', '\t', '\n', '\r\n', '\r', '\u00a0', '\u2003', '\u2009', '\u202f', '\u3000', '\u0085',
  '\u000b', '\u000c', '\u2028', '\u2029', '\u1680'];
const INVISIBLE = ['\u200b', '\u200c', '\u200d', '\u2060', '\ufeff', '\u00ad', '\u180e', '\u200e', '\u200f',
  '\u202a', '\u202c', '\u2066', '\u2069', '\u034f', '\ufe0f', '\ufe0e'];
const ENDS = ["'s", "'S", "'t", "'T", "'re", "'RE", "'ve", "'m", "'M", "'ll", "'LL", "'lL", "'d", "'D", "'x",
  "\u2019s", "\u2019ll", "'\u017f", "''s", " 's", "'", "'sS", "'llama", "`s", "'Re", "'vE"];
const MARKS = ['\u0300', '\u0301', '\u0302', '\u0303', '\u0304', '\u0306', '\u0307', '\u0308', '\u030a', '\u030b',
  '\u030c', '\u0316', '\u0323', '\u0327', '\u0328', '\u031b', '\u0338', '\u0345', '\u05b0', '\u064b', '\u0651',
  '\u093c', '\u3099', '\u309a', '\u20dd'];
const BASES = ['a', 'E', 'o', 'u', 'A', 'n', 's', 'c', '\u0131', '\u00e2', '\u03b1', '\u0438', '\u05d0', '\u0627',
  '\u0915', '\u304b', ' ', '1', '\u212b', '\u2126', '\ufb1d'];
const ODD_NUMBERS = ['\u00bd', '\u00b2', '\u2460', '\u2167', '\u3007', '\u2082', '7'];
const REPEATED = ['a', 'ab', '=', '-', '\u4e00', '\u0e01', 'ha', '0', '12', '.', '\u{1f602}'];
const SPECIAL = ['<|endoftext|>', '<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>', '<|im_start|>', '<|im_end|>',
  '<think>', '</think>', '<tool_call>', '<|fim_prefix|>', '<|endoftext|', '|>', '<', '<|im_', '<\uff5c',
  '<\uff5cbegin\u2581of\u2581sentence\uff5c>', '<\uff5cend\u2581of\u2581sentence\uff5c>', '<\uff5cUser\uff5c>',
  '<\uff5ctool\u2581sep\uff5c>', '<|reserved_special_token_7|>', '<|start_header_id|>user<|end_header_id|>\n\n'];
// First and last code point; all assigned, or (private use, non-characters) never to be.
const BLOCKS = [[0x21, 0x7e], [0xa1, 0xff], [0x100, 0x17f], [0x180, 0x24f], [0x250, 0x2af], [0x2b0, 0x2ff],
  [0x300, 0x36f], [0x3a3, 0x3ff], [0x400, 0x4ff], [0x561, 0x586], [0x5d0, 0x5ea], [0x620, 0x65f], [0x660, 0x6d3],
  [0x904, 0x94d], [0x985, 0x98c], [0xb95, 0xb95], [0xe01, 0xe3a], [0xe40, 0xe5b], [0x10d0, 0x10fa],
  [0x1100, 0x11ff], [0x1200, 0x1248], [0x13a0, 0x13f4], [0x1780, 0x17b3], [0x1e00, 0x1eff], [0x1f00, 0x1f15],
  [0x2010, 0x2027], [0x2030, 0x205e], [0x2070, 0x2071], [0x2080, 0x208e], [0x20a0, 0x20bd], [0x2100, 0x218b],
  [0x2190, 0x23fa], [0x2460, 0x24ff], [0x2500, 0x2775], [0x27f0, 0x27ff], [0x2800, 0x28ff], [0x2c80, 0x2cf3],
  [0x3001, 0x303f], [0x3041, 0x3096], [0x30a0, 0x30ff], [0x3105, 0x312d], [0x3131, 0x318e], [0x3220, 0x3247],
  [0x3400, 0x4db5], [0x4e00, 0x9fd5], [0xa000, 0xa48c], [0xac00, 0xd7a3], [0xe000, 0xf8ff], [0xf900, 0xfa6d],
  [0xfb00, 0xfb06], [0xfb50, 0xfbb1], [0xff01, 0xff9f], [0xfffd, 0xfffd], [0x10000, 0x1000b], [0x10400, 0x1044f],
  [0x12000, 0x1236e], [0x1d400, 0x1d454], [0x1d7ce, 0x1d7ff], [0x1f300, 0x1f320], [0x1f400, 0x1f4fd],
  [0x1f600, 0x1f64f], [0x20000, 0x2a6d6], [0xf0000, 0xf00ff], [0x10fffe, 0x10ffff]];

export function testLines(wordsPath) {
  const r = new Random(20240607);
  const languages = readWords(wordsPath);
  const names = Object.keys(languages);
  const words = (name, count) => many(count, () => r.of(languages[name]));
  const digits = (most, zero) => many(r.between(1, most), () => point(zero + r.below(10))).join('');
  const number = () => r.of([
    () => String(r.below(10)),
    () => String(r.below(100)),
    () => String(r.below(1e6)),
    () => String(r.next()) + String(r.next()),
    () => `${r.below(31)}.${r.below(12)}.${r.between(1700, 2100)}`,
    () => `${r.below(1000)},${r.between(100, 999)}.${r.below(100)}`,
    () => `-${r.below(99)}e+${r.below(300)}`,
    () => `0x${r.next().toString(16)}`,
    () => `${r.below(24)}:${r.between(10, 59)}`,
    () => `${r.below(100)}%`,
    () => digits(9, 0x660),   // Arabic-Indic
    () => digits(7, 0xff10),  // full width
    () => digits(5, 0x966),   // Devanagari
    () => many(r.between(1, 4), () => r.of(ODD_NUMBERS)).join(''),
  ])();
  const mark = () => r.of(['.', ',', '!', '?', ';', ':', '...', ' -', '"', ')', '?!', '!!!', '(', '', '', '']);
  const marked = (word) => word + (r.chance(20) ? mark() : '') + (r.chance(6) ? ' ' + number() : '');
  const sentence = (name, count) => words(name, count).map(marked).join(r.chance(90) ? ' ' : '  ');
  const anyWord = () => r.of(languages[r.of(names)]);
  const wordOf = (...some) => r.of(languages[r.of(some)]);
  const id = () => r.of(['x', 'i', 'num_tokens', 'getValue', 'HTTPServer', '_tmp', 'kMax', 'foo42', '$el']);
  const code = () => r.of([
    () => `${' '.repeat(2 * r.below(9))}if (${id()} != ${number()}) { return ${id()}[${r.below(99)}]; }` +
      ` // ${r.of(languages.english)}`,
    () => `${'\t'.repeat(r.below(5))}for (auto& ${id()} : ${id()}) ${id()} += ${id()}->${id()}();\r\n}`,
    () => `def ${id()}(self, ${id()}=None):\n    """${sentence('english', 4)}"""\n\n` +
      `        return {'${id()}': ${number()}}`,
    () => `<div class="${id()}" id='${id()}'>&nbsp;${r.of(languages.german)}</div><!-- ${id()} -->`,
    () => `SELECT ${id()}, COUNT(*) FROM ${id()} WHERE ${id()} LIKE '%${r.of(languages.french)}%' -- ${number()}`,
    () => `{"${id()}": [${number()}, null, true], "url": "https://example.org/${id()}?q=${r.below(99)}&a=%20#"}`,
    () => `/^[\\w.+-]+@${id()}\\.(com|org)$/gi;\n\n\n#include <${id()}>\n#define ${id()} (1<<${r.below(64)})`,
    () => `$ ls -la ~/${id()}/*.txt | grep -E "^${id()}" > /dev/null 2>&1 && echo $? ;;;;;;`,
  ])();
  const randomPoint = (block) => point(r.between(block[0], block[1]));
  const syllable = () => point(0x1100 + r.below(19), 0x1161 + r.below(21)) +
    (r.chance(50) ? point(0x11a8 + r.below(27)) : '');
  const composed = () => r.chance(15) ? syllable()
    : r.of(BASES) + many(r.between(0, 3), () => r.of(MARKS)).join('');
  const emoji = () => r.of(languages.emoji) + (r.chance(30) ? r.of(languages.english) : '');
  const spaced = () => (r.chance(50) ? r.of(SPACES) : r.of(SPACES).repeat(r.between(1, 30))) +
    (r.chance(60) ? anyWord() : '');
  const control = () => r.chance(60) ? point(r.below(32)) : r.of(['a', ' b', '\u007f', point(0x80 + r.below(32))]);
  const special = () => r.of(SPECIAL) +
    (r.chance(50) ? r.of([' ', '  ', '\n', '']) + anyWord() + r.of(['', ' ']) : '');

  const lines = [];
  // `count` lines of up to `most` parts each.
  const add = (count, most, part, separators = ['']) => {
    for (let i = 0; i < count; ++i) lines.push(many(r.between(1, most), part).join(r.of(separators)));
  };
  const addEach = (count, make) => { for (let i = 0; i < count; ++i) lines.push(make(i)); };
  for (const name of names) addEach(130, () => sentence(name, r.between(1, 12)));
  add(900, 6, () => sentence(r.of(names), r.between(1, 3)), [' ', '', '\n', ' / ']);
  add(500, 8, emoji, ['', ' ']);
  add(500, 8, number, [' ', ', ', '', ' + ']);
  addEach(700, code);
  add(500, 6, () => wordOf('english', 'french', 'russian', 'chinese') + r.of(ENDS), [' ', '']);
  add(500, 9, spaced);
  addEach(120, (i) => r.of(['', 'x', '.', '\n']) + ' '.repeat(i * i / 4 | 0) +
    r.of(['', 'y', '\n', '  \n', '7', '\u4e16', '!']));
  addEach(80, (i) => r.of(['', 'x']) + r.of(['\n', '\t', '\r\n', '\u3000', ' \n', '\u00a0']).repeat(i * 3) +
    r.of(['', 'y', ' z']));
  add(400, 6, () => anyWord() + r.of(INVISIBLE), ['', ' ']);
  add(200, 20, control);
  addEach(300, () => {
    const block = r.of(BLOCKS);
    return many(r.between(1, 24), () => randomPoint(block) + (r.chance(15) ? ' ' : '')).join('');
  });
  add(500, 24, () => randomPoint(r.of(BLOCKS)) + (r.chance(20) ? ' ' : ''));
  add(400, 16, composed);
  addEach(60, (i) => many(1 + i, () => wordOf('english', 'german', 'chinese', 'thai', 'russian')).join('')
    .repeat(1 + i % 7));
  addEach(40, (i) => r.of(REPEATED).repeat(10 * i));
  add(250, 8, () => r.of(['\ufffd', '\ufffd\ufffd', ' \ufffd', '\ufffd ', anyWord()]));
  const specialFrom = lines.length;
  add(500, 5, special);
  return { lines, specialFrom };
}
