// GraphiQL with the rights of whoever is signed in: the session's cookie, and the token that proves it is this page.
// What stands under Headers is sent too, for subscriptions as the connection's payload.
const root = document.getElementById("graphiql");
const url = new URL("/graphql", location.href).href;

const fetcher = GraphiQL.createFetcher({
  url,
  subscriptionUrl: url.replace(/^http/, "ws"),
  headers: { "X-CSRFToken": root.dataset.csrf },
});

const defaultQuery = `# Each operation of Syros is a field: what reads
# is a query, what changes something a mutation,
# what streams a subscription. Another namespace:
# {"Syros-Namespace": "name"} under Headers.
query Locks($first: BigInt = 20) {
  authWhoami { principal namespace }
  locksFind(first: $first) {
    nodes {
      key
      isLocked
      holders { owner expiresAt }
      waiters(limit: 5) { owner since }
      history(limit: 3) { eventType recordedAt }
    }
    pageInfo { hasNextPage endCursor }
  }
}
`;

ReactDOM.createRoot(root).render(
  React.createElement(GraphiQL, { fetcher, defaultQuery, defaultEditorToolsVisibility: "variables" }),
);
