// examples/participants/participant.mjs
import { createServer } from "node:http";

class Refused extends Error {} // nothing was done: the saga turns back

const actions = {
  "/charge": ({ amount }) => {
    if (amount > 100) throw new Refused("card_declined");
    return { charged: amount };
  },
  "/refund": ({ input }) => ({ refunded: input.amount }),
};

async function carryOut(request, response) {
  const parts = [];
  for await (const part of request) parts.push(part);
  const { input } = JSON.parse(Buffer.concat(parts));
  const action = actions[request.url];
  if (!action) return answer(response, 404, { code: "no_such_action" });
  try {
    // With a database, both in one transaction: the barrier by request.headers["syros-saga-id"],
    // ["syros-step"] and ["syros-op"], then the work.
    answer(response, 200, action(input));
  } catch (error) {
    if (error instanceof Refused) answer(response, 409, { code: error.message });
    else answer(response, 500, { code: "broken" }); // nobody knows: it is asked again
  }
}

function answer(response, status, value) {
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify(value));
}

createServer(carryOut).listen(process.env.PORT ?? 8000, "127.0.0.1");
