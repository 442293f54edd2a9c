package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	maxPacket = 32 << 10
	// In bytes, of control data: one descriptor, or two in the room that alignment leaves.
	maxControl = 24
	patience   = 60 * time.Second
)

// request is sent as encoding/json has it: without arguments, "args" is null.
type request struct {
	Method string `json:"method"`
	Args   []any  `json:"args"`
}

type reply struct {
	Success bool            `json:"success"`
	Value   json.RawMessage `json:"value"`
	PipeID  uint32          `json:"pipeid"`
	Code    string          `json:"error_code"`
	Error   string          `json:"error"`
}

// refusal is a failure that the proxy tells of, and lives on.
type refusal struct{ Method, Code, Words string }

func (r *refusal) Error() string {
	return fmt.Sprintf("failed to invoke method %s: %s", r.Method, r.Words)
}

// proxy is a child with the other end of its socket.
type proxy struct {
	child *exec.Cmd
	conn  *net.UnixConn
}

func start(command []string) (*proxy, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	words := append(command[1:], "experimental-image-proxy", "--sockfd", "3")
	child := exec.Command(command[0], words...)
	child.Stderr = os.Stderr
	child.ExtraFiles = []*os.File{theirs} // 3 is the first of them
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := child.Start(); err != nil {
		return nil, err
	}
	return &proxy{child, conn.(*net.UnixConn)}, nil
}

// call sends a request and receives its reply, with the descriptors that belong to it.
func (p *proxy) call(method string, args ...any) (reply, []*os.File, error) {
	message, err := json.Marshal(request{method, args})
	if err != nil {
		return reply{}, nil, err
	}
	if _, err := p.conn.Write(message); err != nil {
		return reply{}, nil, fmt.Errorf("%s: %w", method, err)
	}
	packet, control := make([]byte, maxPacket), make([]byte, maxControl)
	size, controlSize, flags, _, err := p.conn.ReadMsgUnix(packet, control)
	if err != nil {
		return reply{}, nil, fmt.Errorf("%s: %w", method, err)
	}
	if flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 {
		return reply{}, nil, fmt.Errorf("%s: the reply is cut", method)
	}
	files, err := received(control[:controlSize])
	if err != nil {
		return reply{}, nil, fmt.Errorf("%s: %w", method, err)
	}
	var answer reply
	if err := json.Unmarshal(packet[:size], &answer); err != nil {
		return reply{}, nil, fmt.Errorf("%s: %w", method, err)
	}
	if !answer.Success {
		if len(files) != 0 || answer.PipeID != 0 || answer.Error == "" {
			return reply{}, nil, fmt.Errorf("%s: a failure with pipes, or without words", method)
		}
		return reply{}, nil, &refusal{method, answer.Code, answer.Error}
	}
	return answer, files, nil
}

// received returns the descriptors of a reply, which must block: not every client can wait.
func received(control []byte) ([]*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages", len(messages))
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	files := make([]*os.File, len(fds))
	for n, fd := range fds {
		files[n] = os.NewFile(uintptr(fd), "pipe")
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
		if errno != 0 || flags&syscall.O_NONBLOCK != 0 {
			return nil, errors.New("a pipe that does not block")
		}
	}
	return files, nil
}

// value calls a method that has no pipe. Where `value` is nil, the reply has none either.
func (p *proxy) value(value any, method string, args ...any) error {
	answer, files, err := p.call(method, args...)
	if err != nil {
		return err
	}
	if len(files) != 0 || answer.PipeID != 0 {
		return fmt.Errorf("%s: %d pipes, number %d", method, len(files), answer.PipeID)
	}
	return answer.decode(value, method)
}

func (r reply) decode(value any, method string) error {
	if value != nil {
		return json.Unmarshal(r.Value, value)
	}
	if string(r.Value) != "null" && method != "GetBlob" { // a size, which nobody needs
		return fmt.Errorf("%s: %s, expected null", method, r.Value)
	}
	return nil
}

// pipe is content to be read, and to be finished.
type pipe struct {
	file *os.File
	id   uint32
}

func (p *proxy) pipe(value any, method string, args ...any) (*pipe, error) {
	answer, files, err := p.call(method, args...)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 || answer.PipeID == 0 {
		return nil, fmt.Errorf("%s: %d pipes, number %d", method, len(files), answer.PipeID)
	}
	return &pipe{files[0], answer.PipeID}, answer.decode(value, method)
}

// reading is a pipe that a goroutine reads to its end.
type reading struct {
	id   uint32
	done chan struct{}
	data []byte
	err  error
}

func (p *pipe) read() *reading {
	r := &reading{id: p.id, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer p.file.Close()
		r.data, r.err = io.ReadAll(p.file)
	}()
	return r
}

// finish asks for the end while the goroutine reads: the end does not come before.
func (r *reading) finish(p *proxy) ([]byte, error) {
	failure := p.value(nil, "FinishPipe", r.id)
	select {
	case <-r.done:
	case <-time.After(patience):
		return nil, errors.New("no end of the content")
	}
	if failure != nil {
		return nil, failure
	}
	return r.data, r.err
}

// bytes calls a method whose content is small.
func (p *proxy) bytes(value any, method string, args ...any) ([]byte, error) {
	pipe, err := p.pipe(value, method, args...)
	if err != nil {
		return nil, err
	}
	return pipe.read().finish(p)
}

// raw calls GetRawBlob, and gives what the second pipe has besides the content.
func (p *proxy) raw(id uint64, digest string) (content []byte, failure string, err error) {
	answer, files, err := p.call("GetRawBlob", id, digest)
	if err != nil {
		return nil, "", err
	}
	if len(files) != 2 || answer.PipeID != 0 {
		return nil, "", fmt.Errorf("GetRawBlob: %d pipes, number %d", len(files), answer.PipeID)
	}
	data, trouble := (&pipe{file: files[0]}).read(), (&pipe{file: files[1]}).read()
	for _, r := range []*reading{data, trouble} {
		select {
		case <-r.done:
		case <-time.After(patience):
			return nil, "", errors.New("GetRawBlob: no end of a pipe")
		}
		if r.err != nil {
			return nil, "", r.err
		}
	}
	return data.data, string(trouble.data), nil
}

// shutdown sends the last request, which has no reply, and waits for a clean end.
func (p *proxy) shutdown() error {
	message, err := json.Marshal(request{Method: "Shutdown"})
	if err != nil {
		return err
	}
	if _, err := p.conn.Write(message); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.child.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(patience):
		return errors.New("no end after Shutdown")
	}
	if err != nil {
		return fmt.Errorf("after Shutdown: %w", err)
	}
	if n, _ := p.conn.Read(make([]byte, maxPacket)); n != 0 {
		return errors.New("a reply to Shutdown")
	}
	return nil
}

// kill ends a proxy that has not ended by itself.
func (p *proxy) kill() {
	p.conn.Close()
	_ = p.child.Process.Kill()
}
