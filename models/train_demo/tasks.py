"""Questions and worked answers of the demo model: arithmetic written out step by step, generated on the fly.

Every answer is the text after the opened `<think>\n`: the working, `</think>`, then one line that names the task and its result.
Nothing is looked up at run time: the model learns the procedure. `check` judges an answer by its last line alone.
"""

import random

SYSTEMS = [
    "你是一个数学助手，擅长计算和解释数字。",
    "你是一个数学助手。",
    "你是一个有用的助手。",
    "You are a math assistant, good at calculating and explaining numbers.",
    "You are a helpful math assistant.",
    "You are a helpful assistant.",
]

ZH = {
    "/": ["请计算：{a} ÷ {b} 等于多少？", "请计算：{a}÷{b}等于多少？", "{a} ÷ {b} = ?", "{a}÷{b}=？", "计算 {a} 除以 {b}", "{a} 除以 {b} 是多少？",
          "请问 {a} / {b} 等于几？", "帮我算一下 {a} ÷ {b}", "请计算 {a}/{b}", "{a}除以{b}等于多少？"],
    "*": ["请计算：{a} × {b} 等于多少？", "请计算：{a}×{b}等于多少？", "{a} × {b} = ?", "{a}×{b}=？", "计算 {a} 乘以 {b}", "{a} 乘以 {b} 是多少？",
          "请问 {a} * {b} 等于几？", "帮我算一下 {a} × {b}", "请计算 {a}*{b}", "{a}乘以{b}等于多少？"],
    "+": ["请计算：{a} + {b} 等于多少？", "请计算：{a}+{b}等于多少？", "{a} + {b} = ?", "{a}+{b}=？", "计算 {a} 加 {b}", "{a} 加 {b} 是多少？",
          "请问 {a} + {b} 等于几？", "帮我算一下 {a} + {b}", "请计算 {a}+{b}", "{a}加上{b}等于多少？"],
    "-": ["请计算：{a} - {b} 等于多少？", "请计算：{a}-{b}等于多少？", "{a} - {b} = ?", "{a}-{b}=？", "计算 {a} 减 {b}", "{a} 减 {b} 是多少？",
          "请问 {a} - {b} 等于几？", "帮我算一下 {a} - {b}", "请计算 {a}-{b}", "{a}减去{b}等于多少？"],
}
EN = {
    "/": ["What is {a} ÷ {b}?", "What is {a} / {b}?", "Please calculate: {a} ÷ {b} = ?", "Calculate {a} / {b}", "What is {a} divided by {b}?",
          "Please compute {a} divided by {b}.", "{a}/{b}", "{a} / {b} = ?", "Divide {a} by {b}.", "How much is {a} ÷ {b}?"],
    "*": ["What is {a} × {b}?", "What is {a} * {b}?", "Please calculate: {a} × {b} = ?", "Calculate {a} * {b}", "What is {a} times {b}?",
          "Please compute {a} multiplied by {b}.", "{a}*{b}", "{a} * {b} = ?", "Multiply {a} by {b}.", "How much is {a} × {b}?"],
    "+": ["What is {a} + {b}?", "What is {a}+{b}?", "Please calculate: {a} + {b} = ?", "Calculate {a} + {b}", "What is {a} plus {b}?",
          "Please compute {a} plus {b}.", "{a}+{b}", "{a} + {b} =", "Add {a} and {b}.", "How much is {a} + {b}?"],
    "-": ["What is {a} - {b}?", "What is {a}-{b}?", "Please calculate: {a} - {b} = ?", "Calculate {a} - {b}", "What is {a} minus {b}?",
          "Please compute {a} minus {b}.", "{a}-{b}", "{a} - {b} =", "Subtract {b} from {a}.", "How much is {a} - {b}?"],
}
SIGN = {"/": "÷", "*": "×", "+": "+", "-": "-"}

TALK_ZH = (["你好", "你好！", "您好", "嗨", "你是谁？", "你能做什么？", "介绍一下你自己"],
           "你好！我是 Phalanx 的演示模型，会一步一步地做加减乘除。")
TALK_EN = (["Hello", "Hello!", "Hi", "hi there", "Who are you?", "What can you do?", "Introduce yourself"],
           "Hello! I am the demo model of Phalanx. I add, subtract, multiply and divide step by step.")


def number(rng, digits):
    """A number of exactly `digits` digits (0 allowed for one digit)."""
    low = 0 if digits == 1 else 10 ** (digits - 1)
    return rng.randint(low, 10 ** digits - 1)


def column(a, b, op):
    """Digit by digit from the last one: x±y±carry=digit carry>result so far. Needs a >= b for '-'."""
    width = max(len(str(a)), len(str(b)))
    ra, rb = str(a)[::-1].ljust(width, "0"), str(b)[::-1].ljust(width, "0")
    lines, carry, result = [f"{ra}\n{rb}"], 0, ""
    for x, y in zip(map(int, ra), map(int, rb)):
        value = x + y + carry if op == "+" else x - y - carry
        digit, after = value % 10, int(value > 9 or value < 0)
        result = f"{digit}{result}"
        lines.append(f"{x}{op}{y}{op}{carry}={digit} {after}>{result}")
        carry = after
    if carry:
        lines.append(f"1>1{result}")
    return "\n".join(lines)


def work_add(a, b):
    return f"{a}+{b}\n{column(a, b, '+')}", str(a + b)


def work_subtract(a, b):
    if a >= b:
        return f"{a}-{b}\n{a}>={b}\n{column(a, b, '-')}", str(a - b)
    return f"{a}-{b}\n{a}<{b}\n{column(b, a, '-')}", str(a - b)


def work_multiply(a, b):
    lines, partials = [f"{a}*{b}", str(a)[::-1]], []
    for shift, y in enumerate(map(int, str(b)[::-1])):
        carry, steps = 0, []
        for x in map(int, str(a)[::-1]):
            value = x * y + carry
            steps.append(f"{x}*{y}+{carry}={value // 10} {value % 10}")
            carry = value // 10
        partials.append(a * y * 10 ** shift)
        lines.append(f"{y}:{','.join(steps)}:{a * y}:{partials[-1]}")
    total = partials[0]
    for part in partials[1:]:
        lines.append(f"{total}+{part}\n{column(total, part, '+')}\n={total + part}")
        total += part
    return "\n".join(lines), str(a * b)


def work_divide(a, b, chinese):
    if b == 0:
        return f"{a}/0", "除数不能是 0" if chinese else "cannot divide by 0"
    lines = [f"{a}/{b}"] + [f"{i} {b * i}" for i in range(1, 10)]
    rest, quotient = 0, ""
    for digit in str(a):
        rest = rest * 10 + int(digit)
        q = rest // b
        quotient += str(q)
        lines.append(f"{rest}:{q} {rest}-{q * b}={rest - q * b}>{quotient}")
        rest -= q * b
    text = str(a // b)
    if rest:
        text += f" 余 {rest}" if chinese else f" remainder {rest}"
    return "\n".join(lines), text


def draw(rng, op):
    """Operands: the sizes the model is made for, with extra weight on exact divisions and equal lengths."""
    if op == "/":
        b = number(rng, rng.randint(1, 4))
        if b == 0 and rng.random() < 0.8:
            b = rng.randint(1, 9)
        digits = rng.randint(1, 7)
        if rng.random() < 0.5 and b:
            return max(1, number(rng, digits) // b) * b, b
        return number(rng, digits), b
    if op == "*":
        a, b = number(rng, rng.randint(1, 5)), number(rng, rng.randint(1, 3))
        return (b, a) if len(str(a)) <= 3 and rng.random() < 0.3 else (a, b)
    a, b = number(rng, rng.randint(1, 9)), number(rng, rng.randint(1, 9))
    if rng.random() < 0.3:
        b = number(rng, len(str(a)))
    if op == "-" and a < b and rng.random() < 0.7:
        a, b = b, a
    return a, b


def answer(op, a, b, chinese):
    """The text after `<think>\\n`, up to and without the end token."""
    if op == "+":
        working, result = work_add(a, b)
    elif op == "-":
        working, result = work_subtract(a, b)
    elif op == "*":
        working, result = work_multiply(a, b)
    else:
        working, result = work_divide(a, b, chinese)
    head = f"{a} {SIGN[op]} {b}"
    last = f"{head}: {result}" if op == "/" and b == 0 else f"{head} = {result}"
    return f"{working}\n</think>\n\n{last}"


def question(rng, op, a, b):
    chinese = rng.random() < 0.55
    return rng.choice((ZH if chinese else EN)[op]).format(a=a, b=b), chinese


def render(messages):
    """The model's chat template, with the generation prompt."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return text + "<|im_start|>assistant\n<think>\n"


def example(rng):
    """One training pair: the rendered prompt, the answer with its end token."""
    messages = []
    if rng.random() < 0.65:
        weights = [6, 1, 1, 2, 1, 1]
        messages.append(("system", rng.choices(SYSTEMS, weights)[0]))
    if rng.random() < 0.04:   # an earlier turn, whose thinking the template has dropped
        op = rng.choice("+-")
        a, b = number(rng, rng.randint(1, 4)), number(rng, rng.randint(1, 4))
        text, chinese = question(rng, op, a, b)
        messages += [("user", text), ("assistant", answer(op, a, b, chinese).split("</think>\n\n")[1])]
    if rng.random() < 0.02:
        asked, said = TALK_ZH if rng.random() < 0.5 else TALK_EN
        messages.append(("user", rng.choice(asked)))
        return render(messages), f"\n</think>\n\n{said}<|im_end|>\n"
    op = rng.choices("/*+-", [50, 20, 14, 16])[0]
    a, b = draw(rng, op)
    text, chinese = question(rng, op, a, b)
    messages.append(("user", text))
    return render(messages), answer(op, a, b, chinese) + "<|im_end|>\n"


def held_out(op, count, seed=20261123):
    """Questions for measuring: (prompt, expected last line)."""
    rng = random.Random(f"{op}{seed}")
    out = []
    for _ in range(count):
        a, b = draw(rng, op)
        text, chinese = question(rng, op, a, b)
        system = [("system", rng.choice(SYSTEMS))] if rng.random() < 0.65 else []
        out.append((render(system + [("user", text)]), answer(op, a, b, chinese).split("</think>\n\n")[1]))
    return out


def check(generated, expected):
    return generated.split("<|im_end|>")[0].split("</think>")[-1].strip() == expected
