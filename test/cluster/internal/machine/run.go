package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	restartPause = time.Second
	probePause   = 100 * time.Millisecond
	searchPath   = "PATH=/opt/podvirt-local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	logDir       = "/var/log/podvirt"
)

// Run is what a machine's first process does for the rest of its life: root file system, network parameters, programs.
// It returns when ctx ends, and the kernel ends everything else with it.
func Run(ctx context.Context, spec string) error {
	s, err := Load(spec)
	if err != nil {
		return err
	}
	if err := s.enterRoot(ctx); err != nil {
		return err
	}
	if err := errors.Join(leaveGroupRoot(), s.applySysctls(), s.applyNFTables(ctx)); err != nil {
		return err
	}
	in := &initProcess{running: map[int]chan<- unix.WaitStatus{}}
	in.cond = sync.NewCond(&in.mu)
	go in.reap()
	for _, p := range s.Programs {
		go in.keep(ctx, p)
		if err := waitReady(ctx, p.Ready); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	<-ctx.Done()
	return nil
}

// initProcess is PID 1: it adopts and reaps every orphan, so its own children may not be waited for in any other way.
type initProcess struct {
	mu      sync.Mutex
	cond    *sync.Cond // signalled when a child was started
	running map[int]chan<- unix.WaitStatus
}

func (in *initProcess) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		in.mu.Lock()
		switch {
		case errors.Is(err, unix.ECHILD):
			for len(in.running) == 0 {
				in.cond.Wait()
			}
		case err == nil && in.running[pid] != nil:
			in.running[pid] <- status
			delete(in.running, pid)
		}
		in.mu.Unlock()
	}
}

// keep runs a program, again and again, until ctx ends.
func (in *initProcess) keep(ctx context.Context, p Program) {
	logger := klog.FromContext(ctx).WithValues("program", p.Name)
	for ctx.Err() == nil {
		ended := make(chan unix.WaitStatus, 1)
		if err := in.start(p, ended); err != nil {
			logger.Error(err, "start failed")
		} else {
			status := <-ended
			logger.Info("ended", "exit", status.ExitStatus(), "signal", status.Signal())
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartPause):
		}
	}
}

func (in *initProcess) start(p Program, ended chan<- unix.WaitStatus) error {
	log, err := os.OpenFile(filepath.Join(logDir, p.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // nothing was written on this side
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close() // nothing was written
	in.mu.Lock()
	defer in.mu.Unlock()
	process, err := os.StartProcess(p.Argv[0], p.Argv, &os.ProcAttr{
		Dir: "/", Env: []string{searchPath, "HOME=/root"}, Files: []*os.File{null, log, log}, Sys: &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	in.running[process.Pid] = ended
	in.cond.Broadcast()
	return process.Release()
}

// waitReady waits until an address "unix:PATH" or "tcp:HOST:PORT" accepts connections.
func waitReady(ctx context.Context, address string) error {
	network, address, ok := strings.Cut(address, ":")
	if !ok {
		return nil
	}
	ticker := time.NewTicker(probePause)
	defer ticker.Stop()
	dialer := net.Dialer{Timeout: time.Second}
	for {
		if conn, err := dialer.DialContext(ctx, network, address); err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// TurnLogs keeps the logs of the machine's last run under another name and begins new ones.
func TurnLogs(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return err
	}
	for _, log := range logs {
		if err := os.Rename(log, log+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
