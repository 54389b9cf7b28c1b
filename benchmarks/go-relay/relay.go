// A small Go relay on gorilla/websocket, to compare with: relay PORT DEVICES.csv [PEM]
//
// It reads the type of each message and forwards the message unchanged. Each connection has a goroutine, as is
// usual in Go, and a lock for its writers. Device keys are checked against their SHA-256, client tokens as HS256
// JWTs signed with JWT_SECRET. DEVICES.csv has the lines `id,key`. With PEM, a file with certificate and key, it
// serves TLS.
package main

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

var (
	secret   []byte
	keyHash  = map[string][32]byte{}
	upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	mutex    sync.Mutex
	sessions = map[string]*session{}
)

type peer struct {
	socket *websocket.Conn
	writer sync.Mutex
}

func (p *peer) send(kind int, data []byte) {
	p.writer.Lock()
	defer p.writer.Unlock()
	if p.socket.WriteMessage(kind, data) != nil {
		p.socket.Close()
	}
}

func (p *peer) sendPrepared(message *websocket.PreparedMessage) {
	p.writer.Lock()
	defer p.writer.Unlock()
	if p.socket.WritePreparedMessage(message) != nil {
		p.socket.Close()
	}
}

func (p *peer) say(content map[string]any) {
	content["timestamp"] = time.Now().UnixMilli()
	data, err := json.Marshal(content)
	if err == nil {
		p.send(websocket.TextMessage, data)
	}
}

// The attached peers of one device.
type session struct {
	lock   sync.RWMutex
	device *peer
	apps   map[*peer]struct{}
}

func sessionOf(id string) *session {
	mutex.Lock()
	defer mutex.Unlock()
	found := sessions[id]
	if found == nil {
		found = &session{apps: map[*peer]struct{}{}}
		sessions[id] = found
	}
	return found
}

func (s *session) broadcast(kind int, data []byte) {
	s.lock.RLock()
	defer s.lock.RUnlock()
	if len(s.apps) == 0 {
		return
	}
	message, err := websocket.NewPreparedMessage(kind, data)
	if err != nil {
		return
	}
	for app := range s.apps {
		app.sendPrepared(message)
	}
}

func hasType(data []byte) bool {
	var head struct {
		Type *string `json:"type"`
	}
	return json.Unmarshal(data, &head) == nil && head.Type != nil
}

func serveDevice(device *peer, id string) {
	s := sessionOf(id)
	s.lock.Lock()
	replaced := s.device
	s.device = device
	s.lock.Unlock()
	if replaced != nil {
		replaced.send(websocket.CloseMessage, websocket.FormatCloseMessage(4002, "replaced"))
		replaced.socket.Close()
	}
	device.say(map[string]any{"type": "connected"})
	s.broadcast(websocket.TextMessage, []byte(`{"type":"device_online"}`))
	for {
		kind, data, err := device.socket.ReadMessage()
		if err != nil {
			break
		}
		if kind == websocket.BinaryMessage || hasType(data) {
			s.broadcast(kind, data)
		}
	}
	s.lock.Lock()
	isCurrent := s.device == device
	if isCurrent {
		s.device = nil
	}
	s.lock.Unlock()
	if isCurrent {
		s.broadcast(websocket.TextMessage, []byte(`{"type":"device_offline"}`))
	}
}

func serveApp(app *peer, id string) {
	s := sessionOf(id)
	s.lock.Lock()
	s.apps[app] = struct{}{}
	online := s.device != nil
	s.lock.Unlock()
	app.say(map[string]any{"type": "connected", "deviceId": id, "deviceOnline": online})
	for {
		kind, data, err := app.socket.ReadMessage()
		if err != nil {
			break
		}
		if kind != websocket.TextMessage || !hasType(data) {
			continue
		}
		s.lock.RLock()
		device := s.device
		s.lock.RUnlock()
		if device != nil {
			device.send(kind, data)
		} else {
			app.say(map[string]any{"type": "error", "error": "device_offline"})
		}
	}
	s.lock.Lock()
	delete(s.apps, app)
	s.lock.Unlock()
}

// Return whether the token allows the device, and whether it is valid at all.
func checkToken(token, device string) (allowed, valid bool) {
	signed, signature, _ := cutLast(token, ".")
	header, body, _ := cutLast(signed, ".")
	given, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		return false, false
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	if !hmac.Equal(given, mac.Sum(nil)) {
		return false, false
	}
	var head struct{ Alg string }
	var claims struct {
		Exp     int64
		Devices any
	}
	if !decodePart(header, &head) || !decodePart(body, &claims) {
		return false, false
	}
	if head.Alg != "HS256" || claims.Exp <= time.Now().Unix() {
		return false, false
	}
	if claims.Devices == "*" {
		return true, true
	}
	listed, _ := claims.Devices.([]any)
	for _, each := range listed {
		if each == device {
			return true, true
		}
	}
	return false, true
}

func cutLast(text, separator string) (before, after string, found bool) {
	at := strings.LastIndex(text, separator)
	if at < 0 {
		return text, "", false
	}
	return text[:at], text[at+len(separator):], true
}

func decodePart(part string, into any) bool {
	data, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(data, into) == nil
}

func handle(serve func(*peer, string), id string, w http.ResponseWriter, r *http.Request) {
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer socket.Close()
	serve(&peer{socket: socket}, id)
}

func handleDevice(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	id := query.Get("id")
	expected, known := keyHash[id]
	given := sha256.Sum256([]byte(query.Get("key")))
	if !known || !hmac.Equal(given[:], expected[:]) {
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	handle(serveDevice, id, w, r)
}

func handleApp(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	id := query.Get("device")
	allowed, valid := checkToken(query.Get("token"), id)
	switch {
	case !valid:
		http.Error(w, "", http.StatusUnauthorized)
	case !allowed:
		http.Error(w, "", http.StatusForbidden)
	default:
		handle(serveApp, id, w, r)
	}
}

func readDevices(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if id, key, found := strings.Cut(lines.Text(), ","); found {
			keyHash[id] = sha256.Sum256([]byte(key))
		}
	}
	return lines.Err()
}

func main() {
	secret = []byte(os.Getenv("JWT_SECRET"))
	if len(os.Args) < 3 || len(secret) == 0 {
		fmt.Fprintln(os.Stderr, "usage: JWT_SECRET=... relay PORT DEVICES.csv [PEM]")
		os.Exit(2)
	}
	if err := readDevices(os.Args[2]); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/ws/device", handleDevice)
	http.HandleFunc("/ws/client", handleApp)
	server := &http.Server{Addr: "127.0.0.1:" + os.Args[1]}
	if len(os.Args) > 3 {
		log.Fatal(server.ListenAndServeTLS(os.Args[3], os.Args[3]))
	}
	log.Fatal(server.ListenAndServe())
}
