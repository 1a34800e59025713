// The npm client `openai` against a running server: what its users rely on.
//
//   MOEBIUS_URL=http://127.0.0.1:8000 MOEBIUS_ADMIN_URL=http://127.0.0.1:8001 \
//     node --test tests/e2e/openai_client.test.mjs
//
// The server must be otherwise idle, and have its default queue bound (the test
// of RateLimitError asks for more generations at once than that).
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const url = process.env.MOEBIUS_URL;
const adminUrl = process.env.MOEBIUS_ADMIN_URL;
assert.ok(url, 'MOEBIUS_URL is not set');
assert.ok(adminUrl, 'MOEBIUS_ADMIN_URL is not set');

const client = new OpenAI({
  baseURL: `${url}/v1`,
  apiKey: 'none',
  maxRetries: 0,
  timeout: 60_000,
});
const model = (await client.models.list()).data[0].id;
const prompt = 'And the LORD said unto Moses,';
const greedy = { model, temperature: 0 };

async function post(path, body) {
  const response = await fetch(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  return { status: response.status, json: await response.json() };
}

async function status() {
  return (await fetch(`${adminUrl}/status`)).json();
}

// Asks until `condition` holds for the status; there is no event to wait for
// over HTTP.
async function statusWhere(condition, what) {
  let last;
  for (let i = 0; i < 200; ++i) {
    last = await status();
    if (condition(last)) return last;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  assert.fail(`${what}: ${JSON.stringify(last)}`);
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

// The error that `promise` ends with.
async function errorOf(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  assert.fail('no error came');
}

const complete = (fields) =>
  client.completions.create({ ...greedy, prompt, max_tokens: 12, ...fields });
const chat = (fields) =>
  client.chat.completions.create({
    ...greedy,
    messages: [{ role: 'user', content: 'Tell me about Kenya: Background' }],
    max_tokens: 12,
    ...fields,
  });

test('models say where they come from and how long a context is', async () => {
  const list = await client.models.list();
  assert.equal(list.data.length, 1);
  assert.ok(list.data[0].max_model_len > 0);
  assert.ok(list.data[0].root.length > 0);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test('a completion has text, an end and a bill', async () => {
  const first = await complete({});
  const choice = first.choices[0];
  assert.ok(choice.text.length > 0);
  assert.equal(choice.finish_reason, 'length');
  assert.equal(choice.logprobs, null);
  assert.equal(first.usage.completion_tokens, 12);
  assert.equal(
    first.usage.total_tokens,
    first.usage.prompt_tokens + first.usage.completion_tokens,
  );
  assert.equal((await complete({})).choices[0].text, choice.text);
});

test('a chat has a message of the assistant', async () => {
  const answer = await chat({});
  assert.equal(answer.object, 'chat.completion');
  assert.equal(answer.choices[0].message.role, 'assistant');
  assert.ok(answer.choices[0].message.content.length > 0);
  const parts = await chat({
    messages: [
      {
        role: 'user',
        content: [{ type: 'text', text: 'Tell me about Kenya: Background' }],
      },
    ],
  });
  assert.equal(
    parts.choices[0].message.content,
    answer.choices[0].message.content,
  );
});

test('a stream of a completion adds up to the whole', async () => {
  const whole = await complete({});
  const chunks = await collect(await complete({ stream: true }));
  assert.equal(
    chunks.map((chunk) => chunk.choices[0].text).join(''),
    whole.choices[0].text,
  );
  assert.equal(chunks.at(-1).choices[0].finish_reason, 'length');
  for (const chunk of chunks.slice(0, -1)) {
    assert.equal(chunk.choices[0].finish_reason, null);
    assert.equal(chunk.id, chunks[0].id);
  }
});

test('a stream of a chat names the role once and ends with the usage',
  async () => {
    const whole = await chat({});
    const chunks = await collect(
      await chat({ stream: true, stream_options: { include_usage: true } }),
    );
    const usage = chunks.pop();
    assert.deepEqual(usage.choices, []);
    assert.deepEqual(usage.usage, whole.usage);
    assert.equal(chunks[0].choices[0].delta.role, 'assistant');
    assert.equal(chunks[0].usage, null);
    for (const chunk of chunks.slice(1)) {
      assert.equal(chunk.choices[0].delta.role, undefined);
    }
    assert.equal(
      chunks.map((chunk) => chunk.choices[0].delta.content).join(''),
      whole.choices[0].message.content,
    );
  });

test('streams at the same time do not mix', async () => {
  const names = ['Kenya', 'France', 'Japan', 'Peru', 'Chad', 'Fiji', 'Iran',
    'Cuba'];
  const ask = (name) => ({
    messages: [{ role: 'user', content: `Tell me about ${name}: Background` }],
    max_tokens: 24,
  });
  const together = await Promise.all(
    names.map(async (name) => {
      const chunks = await collect(await chat({ ...ask(name), stream: true }));
      return chunks.map((chunk) => chunk.choices[0].delta.content).join('');
    }),
  );
  for (let i = 0; i < names.length; ++i) {
    const alone = await chat(ask(names[i]));
    assert.equal(together[i], alone.choices[0].message.content, names[i]);
  }
});

test('choices of one prompt are those of the following seeds', async () => {
  const sampled = { temperature: 1, seed: 41 };
  const both = await complete({ ...sampled, n: 2 });
  assert.deepEqual(both.choices.map((choice) => choice.index), [0, 1]);
  const second = await complete({ ...sampled, seed: 42 });
  assert.equal(both.choices[1].text, second.choices[0].text);
  assert.notEqual(both.choices[0].text, both.choices[1].text);
  assert.equal(both.usage.completion_tokens, 24);
  const chunks = await collect(
    await complete({ ...sampled, n: 2, stream: true }),
  );
  const texts = ['', ''];
  for (const chunk of chunks) {
    texts[chunk.choices[0].index] += chunk.choices[0].text;
  }
  assert.deepEqual(texts, both.choices.map((choice) => choice.text));
});

test('several prompts are answered as one by one', async () => {
  const prompts = [prompt, 'In the beginning'];
  const both = await complete({ prompt: prompts });
  for (let i = 0; i < prompts.length; ++i) {
    const alone = await complete({ prompt: prompts[i] });
    assert.equal(both.choices[i].index, i);
    assert.equal(both.choices[i].text, alone.choices[0].text);
  }
});

test('token ids are prompts too, and come back when asked for', async () => {
  const tokens = (await post('/tokenize', { model, prompt })).json.tokens;
  const text = await complete({ return_token_ids: true });
  const ids = await complete({ prompt: tokens });
  assert.equal(ids.choices[0].text, text.choices[0].text);
  assert.deepEqual(text.choices[0].prompt_token_ids, tokens);
  assert.equal(text.choices[0].token_ids.length, 12);
  const back = await post('/detokenize', {
    tokens: text.choices[0].token_ids,
  });
  assert.equal(back.json.prompt, text.choices[0].text);
  const chunks = await collect(
    await complete({ return_token_ids: true, stream: true }),
  );
  assert.deepEqual(chunks[0].choices[0].prompt_token_ids, tokens);
  assert.deepEqual(
    chunks.flatMap((chunk) => chunk.choices[0].token_ids),
    text.choices[0].token_ids,
  );
});

test('a stop string ends the text before it, and is named', async () => {
  const whole = (await complete({ max_tokens: 24 })).choices[0].text;
  const stop = whole.slice(8, 12);
  const cut = whole.slice(0, whole.indexOf(stop));
  const one = (await complete({ max_tokens: 24, stop })).choices[0];
  assert.equal(one.text, cut);
  assert.equal(one.finish_reason, 'stop');
  assert.equal(one.stop_reason, stop);
  const list = await complete({
    max_tokens: 24,
    stop: ['never in there', stop],
    include_stop_str_in_output: true,
  });
  assert.equal(list.choices[0].text, cut + stop);
  const chunks = await collect(
    await complete({ max_tokens: 24, stop, stream: true }),
  );
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(''), cut);
  assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
  const streamedChat = await chat({ stop: [' '], stream: true });
  const last = (await collect(streamedChat)).at(-1);
  assert.ok(['stop', 'length'].includes(last.choices[0].finish_reason));
});

test('a stop token ends the generation and is named by its id', async () => {
  const whole = await complete({ return_token_ids: true });
  const third = whole.choices[0].token_ids[2];
  const stopped = await complete({
    stop_token_ids: [third],
    return_token_ids: true,
  });
  assert.equal(stopped.choices[0].finish_reason, 'stop');
  assert.equal(stopped.choices[0].stop_reason, third);
  const first = whole.choices[0].token_ids.indexOf(third);
  assert.equal(stopped.choices[0].token_ids.length, first + 1);
  // Not before min_tokens.
  const later = await complete({ stop_token_ids: [third], min_tokens: 6 });
  assert.ok(later.usage.completion_tokens >= 6);
});

test('log-probabilities of a completion are parallel lists', async () => {
  const answer = await complete({ logprobs: 3 });
  const { text, logprobs } = answer.choices[0];
  assert.equal(logprobs.tokens.length, 12);
  assert.equal(logprobs.tokens.join(''), text);
  for (let i = 0; i < 12; ++i) {
    const top = logprobs.top_logprobs[i];
    assert.ok(logprobs.token_logprobs[i] <= 0);
    // Greedy: the token is the likeliest.
    assert.equal(top[logprobs.tokens[i]], logprobs.token_logprobs[i]);
    assert.equal(Math.max(...Object.values(top)), logprobs.token_logprobs[i]);
    assert.equal(
      logprobs.text_offset[i],
      logprobs.tokens.slice(0, i).join('').length,
    );
  }
  const chunks = await collect(await complete({ logprobs: 3, stream: true }));
  assert.deepEqual(
    chunks.flatMap((chunk) => chunk.choices[0].logprobs.token_logprobs),
    logprobs.token_logprobs,
  );
  assert.deepEqual(
    chunks.flatMap((chunk) => chunk.choices[0].logprobs.text_offset),
    logprobs.text_offset,
  );
});

test('log-probabilities of a chat carry bytes', async () => {
  const answer = await chat({ logprobs: true, top_logprobs: 2 });
  const content = answer.choices[0].logprobs.content;
  assert.ok(content.length > 0);
  for (const token of content) {
    assert.equal(token.top_logprobs.length, 2);
    assert.equal(token.top_logprobs[0].logprob, token.logprob);
    assert.equal(Buffer.from(token.bytes).toString(), token.token);
  }
  const none = await chat({});
  assert.equal(none.choices[0].logprobs, null);
});

test('echo repeats the prompt, and scores it without a token', async () => {
  const echoed = await complete({ echo: true });
  const plain = await complete({});
  assert.equal(echoed.choices[0].text, prompt + plain.choices[0].text);
  const scored = await complete({ echo: true, max_tokens: 0, logprobs: 1 });
  const { text, logprobs, finish_reason } = scored.choices[0];
  assert.equal(text, prompt);
  assert.equal(finish_reason, 'length');
  assert.equal(scored.usage.completion_tokens, 0);
  assert.equal(logprobs.tokens.length, scored.usage.prompt_tokens);
  assert.equal(logprobs.token_logprobs[0], null);
  for (const logprob of logprobs.token_logprobs.slice(1)) {
    assert.ok(logprob <= 0);
  }
  const both = await complete({ echo: true, logprobs: 0 });
  assert.deepEqual(
    both.choices[0].logprobs.token_logprobs.slice(
      0,
      scored.usage.prompt_tokens,
    ),
    logprobs.token_logprobs,
  );
});

test('sampling with a seed repeats, and penalties and biases are heard',
  async () => {
    const sampled = { temperature: 1.2, top_p: 0.95, seed: 7, top_k: 50 };
    const one = await complete(sampled);
    assert.equal((await complete(sampled)).choices[0].text,
      one.choices[0].text);
    const tokens = (await complete({ return_token_ids: true })).choices[0]
      .token_ids;
    const biased = await complete({
      logit_bias: { [tokens[0]]: -100 },
      return_token_ids: true,
    });
    assert.ok(!biased.choices[0].token_ids.includes(tokens[0]));
    const forced = await complete({
      logit_bias: { [tokens[3]]: 100 },
      return_token_ids: true,
    });
    assert.deepEqual(
      forced.choices[0].token_ids,
      Array(12).fill(tokens[3]),
    );
  });

test('bad values are BadRequestErrors that name the field', async () => {
  const cases = {
    temperature: { temperature: 3 },
    top_p: { top_p: 0 },
    n: { n: 129 },
    logprobs: { logprobs: 21 },
    max_tokens: { max_tokens: -1 },
    stop: { stop: Array(17).fill('x') },
    logit_bias: { logit_bias: { x: 1 } },
    prompt: { prompt: [] },
    stream: { stream: 'yes' },
  };
  for (const [param, fields] of Object.entries(cases)) {
    const error = await errorOf(complete(fields));
    assert.ok(error instanceof OpenAI.BadRequestError, param);
    assert.equal(error.param, param);
    assert.equal(error.type, 'invalid_request_error');
    assert.match(error.message, /must be/);
  }
  const content = await errorOf(chat({ messages: [{ role: 'user' }] }));
  assert.ok(content instanceof OpenAI.BadRequestError);
  assert.equal(content.param, 'messages[0].content');
});

test('an unknown model is a NotFoundError', async () => {
  const error = await errorOf(complete({ model: 'gpt-4' }));
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, 'model_not_found');
  const retrieve = await errorOf(client.models.retrieve('gpt-4'));
  assert.ok(retrieve instanceof OpenAI.NotFoundError);
  assert.equal((await fetch(`${url}/v1/nowhere`)).status, 404);
  assert.equal((await fetch(`${url}/v1/completions`)).status, 405);
});

test('a prompt longer than the context is told both numbers', async () => {
  const length = (await client.models.retrieve(model)).max_model_len;
  const error = await errorOf(
    complete({ prompt: Array(length + 5).fill(100) }),
  );
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.code, 'context_length_exceeded');
  assert.match(error.message, new RegExp(`${length}.*${length + 5}`));
});

test('a body over four megabytes is a 413', async () => {
  const error = await errorOf(complete({ prompt: 'x'.repeat(5 << 20) }));
  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.status, 413);
  assert.equal(error.code, 'request_too_large');
  await complete({});
});

test('more than the queue can ever hold is a BadRequestError', async () => {
  const error = await errorOf(
    complete({ prompt: Array(256).fill(prompt), n: 8 }),
  );
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, 'n');
  assert.match(error.message, /at most 1024 generations/);
});

test('more than the queue holds now is a RateLimitError', async () => {
  const many = {
    prompt: Array(8).fill(prompt),
    n: 128,
    max_tokens: 1000,
    ignore_eos: true,
    stream: true,
  };
  const stream = await complete(many);
  const error = await errorOf(complete(many));
  assert.ok(error instanceof OpenAI.RateLimitError);
  const seconds = Number(error.headers.get('retry-after'));
  assert.ok(seconds >= 1 && seconds <= 60, `${seconds}`);
  stream.controller.abort();
  await statusWhere((s) => s.running + s.waiting === 0, 'not idle after');
  await complete({});
});

test('a stream that is given up frees its request at once', async () => {
  const before = await statusWhere(
    (s) => s.running + s.waiting === 0,
    'not idle before',
  );
  const stream = await complete({
    max_tokens: 3000,
    ignore_eos: true,
    stream: true,
  });
  let seen = 0;
  for await (const chunk of stream) {
    assert.equal(chunk.choices[0].finish_reason, null);
    if (++seen === 3) break; // the client closes the connection
  }
  const after = await statusWhere(
    (s) => s.running + s.waiting === 0,
    'still running',
  );
  assert.equal(after.requests.aborted, before.requests.aborted + 1);
  for (const worker of after.workers) {
    assert.equal(worker.pages_free, worker.pages_total);
  }
});

test('a request that is given up before its answer is freed too', async () => {
  const before = await status();
  const controller = new AbortController();
  const answer = client.completions.create(
    { ...greedy, prompt, max_tokens: 3000, ignore_eos: true },
    { signal: controller.signal },
  );
  await Promise.all([
    errorOf(answer).then((error) => {
      assert.ok(error instanceof OpenAI.APIUserAbortError);
    }),
    statusWhere((s) => s.running > 0, 'never ran').then(() =>
      controller.abort(),
    ),
  ]);
  const after = await statusWhere(
    (s) => s.running + s.waiting === 0,
    'still running',
  );
  assert.equal(after.requests.aborted, before.requests.aborted + 1);
});

test('probes and metrics answer', async () => {
  for (const base of [url, adminUrl]) {
    assert.equal((await fetch(`${base}/health`)).status, 200);
    assert.equal((await fetch(`${base}/ready`)).status, 200);
    assert.ok((await (await fetch(`${base}/version`)).json()).version);
  }
  assert.equal((await fetch(`${adminUrl}/progress`)).status, 200);
  const metrics = await (await fetch(`${adminUrl}/metrics`)).text();
  assert.match(metrics, /^vllm:generation_tokens_total\{.*\} [1-9]/m);
  assert.match(metrics, /^moebius:ready 1$/m);
});
