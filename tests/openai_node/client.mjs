// The published Node client against the server at argv[2]; prints a JSON report that tests/openai_test.py judges.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0, timeout: 60_000 });
const request = {
  model: "demo",
  messages: [
    { role: "system", content: "你是一个数学助手，擅长计算和解释数字。" },
    { role: "user", content: "请计算：144500 ÷ 1156 等于多少？" },
  ],
  max_tokens: 1024,
  temperature: 0.7,
  seed: 1,
};

const plain = await client.chat.completions.create(request);
const stream = client.chat.completions.stream(request);
const streamed = await stream.finalChatCompletion();
const models = [];
for await (const model of client.models.list()) models.push(model.id);

async function failure(change) {
  try {
    await client.chat.completions.create({ ...request, ...change });
  } catch (error) {
    return error;
  }
  throw new Error("was not refused: " + JSON.stringify(change));
}
const bad = await failure({ temperature: -1 });
const missing = await failure({ model: "other" });

console.log(JSON.stringify({
  plain: plain.choices[0].message.content,
  streamed: streamed.choices[0].message.content,
  finish: [plain.choices[0].finish_reason, streamed.choices[0].finish_reason],
  models,
  error: { status: bad.status, param: bad.param },
  missing: missing.status,
}));
