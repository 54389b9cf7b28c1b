import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.WebSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/**
 * Fetch from a relay and talk to a machine through it, with java.net.http as it is: it prefers HTTP/2.
 * Arguments: the relay's URL, a token, a device, and the relay's certificate.
 */
public class Client {
    static final BlockingQueue<String> heard = new LinkedBlockingQueue<>();
    static final BlockingQueue<Integer> closed = new LinkedBlockingQueue<>();

    public static void main(String[] args) throws Exception {
        String base = args[0];
        HttpClient client = HttpClient.newBuilder()
            .connectTimeout(Duration.ofSeconds(10))
            .sslContext(trusting(Path.of(args[3])))
            .build();
        HttpRequest get = HttpRequest.newBuilder(URI.create(base + "/api/health")).build();
        HttpRequest post = HttpRequest.newBuilder(URI.create(base + "/api/auth/refresh"))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString("{\"refreshToken\":\"x\"}"))
            .build();
        HttpRequest head = HttpRequest.newBuilder(URI.create(base + "/api/nowhere"))
            .method("HEAD", HttpRequest.BodyPublishers.noBody())
            .build();
        int headStatus = client.send(head, BodyHandlers.ofString()).statusCode();
        int getStatus = client.send(get, BodyHandlers.ofString()).statusCode();
        int postStatus = client.send(post, BodyHandlers.ofString()).statusCode();

        String address = base.replaceFirst("^http", "ws") + "/ws/client?token=" + args[1] + "&device=" + args[2];
        WebSocket socket = client.newWebSocketBuilder()
            .buildAsync(URI.create(address), new Listener())
            .get(10, TimeUnit.SECONDS);
        String first = heard.poll(10, TimeUnit.SECONDS);
        socket.sendText("{\"type\":\"command\",\"cmd\":\"tare\"}", true).get(10, TimeUnit.SECONDS);
        String last = first;
        while (last != null && !last.contains("\"type\":\"log\"")) {
            last = heard.poll(10, TimeUnit.SECONDS);
        }
        socket.sendClose(WebSocket.NORMAL_CLOSURE, "").get(10, TimeUnit.SECONDS);
        Integer code = closed.poll(10, TimeUnit.SECONDS);
        System.out.printf(
            "{\"head\":%d,\"get\":%d,\"post\":%d,\"first\":%s,\"last\":%s,\"close\":%d}%n",
            headStatus, getStatus, postStatus, type(first), type(last), code);
    }

    static String type(String message) {
        return message == null ? "null" : message.replaceFirst("^.*\"type\":(\"[a-z_]+\").*$", "$1");
    }

    static SSLContext trusting(Path file) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream stream = Files.newInputStream(file)) {
            store.setCertificateEntry("relay", CertificateFactory.getInstance("X.509").generateCertificate(stream));
        }
        TrustManagerFactory managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        return context;
    }

    static class Listener implements WebSocket.Listener {
        private final StringBuilder text = new StringBuilder();

        @Override
        public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean last) {
            text.append(data);
            if (last) {
                heard.add(text.toString());
                text.setLength(0);
            }
            socket.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
            closed.add(code);
            return null;
        }

        @Override
        public void onError(WebSocket socket, Throwable error) {
            error.printStackTrace();
        }
    }
}
