// The npm client `openai` against a server that wants API keys.
//
//   MOEBIUS_URL=http://127.0.0.1:8000 MOEBIUS_API_KEY=sk-... \
//     node --test tests/e2e/openai_keys.test.mjs
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const url = process.env.MOEBIUS_URL;
const key = process.env.MOEBIUS_API_KEY;
assert.ok(url, 'MOEBIUS_URL is not set');
assert.ok(key, 'MOEBIUS_API_KEY is not set');

function clientWith(apiKey) {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });
}

function isAuthenticationError(error) {
  assert.ok(error instanceof OpenAI.AuthenticationError, String(error));
  assert.equal(error.status, 401);
  assert.equal(error.code, 'invalid_api_key');
  assert.equal(error.type, 'invalid_request_error');
  assert.ok(!error.message.includes('sk-'), error.message);
  return true;
}

test('the right key is served, streams too', async () => {
  const client = clientWith(key);
  const model = (await client.models.list()).data[0].id;
  const stream = await client.completions.create({
    model, prompt: 'In the beginning', max_tokens: 4, stream: true,
  });
  let text = '';
  for await (const chunk of stream) text += chunk.choices[0]?.text ?? '';
  assert.ok(text.length > 0);
});

test('a wrong key is an AuthenticationError', async () => {
  const client = clientWith(`${key}x`);
  await assert.rejects(client.models.list(), isAuthenticationError);
  for (const stream of [false, true]) {
    await assert.rejects(
      client.chat.completions.create({
        model: 'verse-moe', stream, messages: [{ role: 'user', content: 'x' }],
      }),
      isAuthenticationError,
    );
  }
});

test('a large body is refused with an answer, not with a broken connection', async () => {
  const client = clientWith('sk-wrong-0123456789');
  await assert.rejects(
    client.completions.create({ model: 'verse-moe', prompt: 'x'.repeat(3_000_000) }),
    isAuthenticationError,
  );
});
