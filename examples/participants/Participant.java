// examples/participants/Participant.java
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

class Participant {
    static final Pattern AMOUNT = Pattern.compile("\"amount\":([0-9.]+)"); // or your JSON library

    /** Nothing was done: the saga turns back. */
    static class Refused extends Exception {
        Refused(String code) { super(code); }
    }

    interface Action { String carryOut(double amount) throws Exception; }

    static String charge(double amount) throws Refused {
        if (amount > 100) throw new Refused("card_declined");
        return "{\"charged\":" + amount + "}";
    }

    static String refund(double amount) { return "{\"refunded\":" + amount + "}"; }

    static void answer(HttpExchange exchange, Action action) throws IOException {
        Matcher found = AMOUNT.matcher(new String(exchange.getRequestBody().readAllBytes()));
        try {
            if (!found.find()) throw new Refused("bad_input");
            // With a database, both in one transaction: the barrier by the request's headers Syros-Saga-Id,
            // Syros-Step and Syros-Op, then the work.
            send(exchange, 200, action.carryOut(Double.parseDouble(found.group(1))));
        } catch (Refused refusal) {
            send(exchange, 409, "{\"code\":\"" + refusal.getMessage() + "\"}");
        } catch (Exception error) { // nobody knows: it is asked again
            send(exchange, 500, "{\"code\":\"broken\"}");
        }
    }

    static void send(HttpExchange exchange, int status, String text) throws IOException {
        byte[] body = text.getBytes();
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.sendResponseHeaders(status, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    public static void main(String[] args) throws IOException {
        int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "8000"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/charge", exchange -> answer(exchange, Participant::charge));
        server.createContext("/refund", exchange -> answer(exchange, Participant::refund));
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
    }
}
