// Writes what the tests of byte-level tokenizers expect: the ids that published encoders give to the lines of
// tokenizer_lines.mjs. Run by hand when the lines or the vocabularies change:
//
//   ./dev setup                                          # fetches the vocabularies into build-vocabularies/
//   npm install --ignore-scripts --prefix /tmp/reference tokenizers@0.23.2 tiktoken@1.0.22
//   node tools/tokenizer_reference.mjs /tmp/reference build-vocabularies tests/data/files/tokenizer
//
// The encoder is Hugging Face's own (package tokenizers, compiled Rust). For GPT-2, which is published as two
// files, a tokenizer.json is made of them, and OpenAI's tiktoken must give the same ids for every line.
import { readFileSync, writeFileSync, mkdtempSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import zlib from 'node:zlib';
import { testLines } from './tokenizer_lines.mjs';

const [referenceFolder, vocabularies, output] = process.argv.slice(2);
const require = createRequire(path.resolve(referenceFolder, 'node_modules', 'x.js'));
const { Tokenizer } = require('tokenizers');
const PLAIN = { addSpecialTokens: false };
const FULL_EVERY = 50;  // every so many lines all ids are kept, so that a difference can be looked at

const readJson = (...parts) => JSON.parse(readFileSync(path.join(...parts), 'utf8'));
const pack = (file, value) =>
  writeFileSync(path.join(output, file), zlib.gzipSync(JSON.stringify(value), { level: 9 }));

// CRC-32 of the ids, four bytes each, little end first.
function digest(ids) {
  const bytes = Buffer.alloc(4 * ids.length);
  ids.forEach((id, i) => bytes.writeInt32LE(id, 4 * i));
  return zlib.crc32(bytes);
}

function gpt2Json(folder) {
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const vocab = readJson(folder, 'encoder.json');
  const merges = readFileSync(path.join(folder, 'vocab.bpe'), 'utf8').split('\n')
    .filter((line) => line !== '' && !line.startsWith('#version'));
  return {
    version: '1.0', truncation: null, padding: null,
    added_tokens: [{ id: vocab['<|endoftext|>'], content: '<|endoftext|>', special: true, normalized: false,
      single_word: false, lstrip: false, rstrip: false }],
    normalizer: null, pre_tokenizer: byteLevel, post_processor: null, decoder: byteLevel,
    model: { type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null,
      end_of_word_suffix: null, fuse_unk: false, byte_fallback: false, ignore_merges: false, vocab, merges },
  };
}

function tokenizerOf(json) {
  const file = path.join(mkdtempSync(path.join(tmpdir(), 'tokenizer-')), 'tokenizer.json');
  writeFileSync(file, JSON.stringify(json));
  return Tokenizer.fromFile(file);
}

// The tokenizer that does not look for special tokens. All added tokens go into the vocabulary, where no merge
// makes them, because those that stay would be numbered anew.
function withoutSpecial(json) {
  const vocab = { ...json.model.vocab };
  for (const token of json.added_tokens) vocab[token.content] = token.id;
  return { ...json, model: { ...json.model, vocab }, added_tokens: json.added_tokens.filter((t) => !t.special) };
}

async function encodeAll(tokenizer, lines) {
  const ids = [];
  for (const line of lines) ids.push((await tokenizer.encode(line, null, PLAIN)).getIds());
  return ids;
}

function checkTiktoken(lines, ids) {
  const tiktoken = require('tiktoken').get_encoding('gpt2');
  let different = 0;
  lines.forEach((line, i) => {
    const other = Array.from(tiktoken.encode(line, [], []));
    if (other.join() === ids[i].join()) return;
    if (++different <= 5) console.log(`  tiktoken differs on line ${i}: ${JSON.stringify(line)}`);
  });
  if (different > 0) throw new Error(`tiktoken gives other ids for ${different} of ${lines.length} lines`);
  console.log(`  tiktoken gives the same ids for all ${lines.length} lines`);
}

// Ids as no text gives them: their bytes need not be UTF-8.
async function decodings(tokenizer, size, known) {
  const list = [];
  let state = 12345;
  for (let n = 0; n < 400; ++n) {
    const ids = [];
    while (ids.length < 1 + n % 12) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const id = n % 2 ? (state >>> 8) % size : (state >>> 8) % 300;
      if (known(id)) ids.push(id);
    }
    list.push({ ids, crc32: zlib.crc32(Buffer.from(await tokenizer.decode(ids, true), 'utf8')) });
  }
  return list;
}

async function writeOne(name, json, { lines, specialFrom }) {
  console.log(name);
  const parse = tokenizerOf(json);
  const plain = tokenizerOf(withoutSpecial(json));
  const ids = await encodeAll(plain, lines);
  const parsed = await encodeAll(parse, lines.slice(specialFrom));
  if (name === 'gpt2') checkTiktoken(lines, ids);
  const full = {};
  const changed = {};  // lines that decoding does not give back: the text was normalised
  for (let i = 0; i < lines.length; ++i) {
    if (i % FULL_EVERY === 0) full[i] = ids[i];
    const back = await plain.decode(ids[i], false);
    if (back !== lines[i]) changed[i] = zlib.crc32(Buffer.from(back, 'utf8'));
  }
  const used = new Set([...Object.values(json.model.vocab), ...json.added_tokens.map((t) => t.id)]);
  const size = [...used].reduce((a, b) => Math.max(a, b)) + 1;
  const decoded = await decodings(parse, size, (id) => used.has(id));
  const digests = { plain: ids.map(digest), parse: parsed.map(digest) };
  pack(`${name}.json.gz`, { vocab_size: size, ...digests, full, changed, decoded });
  const total = ids.reduce((sum, x) => sum + x.length, 0);
  const special = parsed.filter((x, i) => x.join() !== ids[specialFrom + i].join()).length;
  console.log(`  ${lines.length} lines, ${total} ids; ${Object.keys(changed).length} lines changed by ` +
    `normalisation, ${special} with special tokens`);
}

const text = testLines(path.join(output, 'words.txt'));
text.lines.forEach((line, i) => {
  if (!line.isWellFormed()) throw new Error(`line ${i} has a lone surrogate`);
});
pack('lines.json.gz', text);
console.log(`${text.lines.length} lines, ${Buffer.byteLength(text.lines.join(''), 'utf8')} bytes`);
await writeOne('gpt2', gpt2Json(path.join(vocabularies, 'gpt2')), text);
for (const name of ['llama3', 'qwen3', 'deepseek_v3']) {
  await writeOne(name, readJson(vocabularies, name, 'tokenizer.json'), text);
}
