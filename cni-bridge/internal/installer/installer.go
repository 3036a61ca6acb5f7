// Package installer puts the plugin and its entry in the runtime's chain onto a node, keeps them there, and takes them
// away again (network.md 2.5). Nobody's file is edited where a drop-in will do.
package installer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/atomicfile"
)

// Options of an installer.
type Options struct {
	Source      string // our own program
	ConfDir     string // of the runtime
	BinDir      string // of the runtime
	StateDir    string
	SettingsDir string   // podvirt-config, mounted; "": defaults
	Method      Method   // overrides the settings; "": does not
	Metrics     *Metrics // told of repairs; nil: nobody is
	MACSalt     *string  // overrides the settings; nil: does not
	API         API
}

// Installer keeps a node installed.
type Installer struct {
	options Options
	salt    string // of the cluster, once known
	repairs []time.Time
	said    string // the last problem that was logged
	settled bool   // it was installed once: what changes from now on is a repair
}

// New checks the options.
func New(o Options) (*Installer, error) {
	for name, dir := range map[string]string{"--conf-dir": o.ConfDir, "--bin-dir": o.BinDir, "--state-dir": o.StateDir} {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("%s=%s: not an absolute path", name, dir)
		}
	}
	return &Installer{options: o}, nil
}

// Timing of the loop. Editors write in several steps, so an event waits for the ones that follow; after many repairs
// in a short time somebody fights us, and the loop leaves longer pauses.
const (
	settle      = 100 * time.Millisecond
	retry       = 5 * time.Second
	resync      = time.Minute
	fightWindow = 10 * time.Second
	fightLimit  = 10
	fightPause  = 30 * time.Second
)

// Run installs, and repairs what others change, until the context ends; what is installed stays then.
func (i *Installer) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the node's CNI directories: %w", err)
	}
	defer func() { _ = watcher.Close() }()
	for {
		pause := i.round(ctx, watcher)
		if err := wait(ctx, watcher, pause); err != nil {
			return nil
		}
	}
}

// round brings the node to what it should be, and returns how long to wait at most for the next one.
func (i *Installer) round(ctx context.Context, watcher *fsnotify.Watcher) time.Duration {
	logger := klog.FromContext(ctx)
	changed, plan, err := i.Install(ctx)
	watchesMore := i.watch(ctx, watcher, plan)
	if len(changed) > 0 {
		logger.Info("Installed", "method", plan.Method, "changed", changed)
		if i.settled && i.options.Metrics != nil {
			i.options.Metrics.Repaired()
		}
	}
	i.settled = i.settled || err == nil
	if err != nil {
		if i.said != err.Error() {
			logger.Info("Not installed", "reason", err.Error())
		}
		i.said = err.Error()
		return retry
	}
	i.said = ""
	if i.fighting(len(changed) > 0, time.Now()) {
		logger.Info("Somebody undoes the installation again and again; pausing", "pause", fightPause.String())
		return fightPause
	}
	if watchesMore { // what happened between the look and the watch was not seen
		return settle
	}
	return resync
}

// Install does what is to be done now and returns what it changed.
func (i *Installer) Install(ctx context.Context) ([]string, Plan, error) {
	settings, err := i.settings(ctx)
	if err != nil {
		return nil, Plan{}, err
	}
	var changed []string
	if settings.Method != MethodOff {
		// First the binary: an entry in the chain without it would fail every Pod of the node.
		installed, err := InstallBinary(ctx, i.options.Source, i.options.BinDir)
		if err != nil {
			return nil, Plan{}, err
		}
		if installed {
			changed = append(changed, filepath.Join(i.options.BinDir, api.CNIType))
		}
	}
	links, linkErr := linkNames(i.options.BinDir, settings.Names)
	changed = append(changed, links...)
	stage, err := encode(settings.Stage)
	if err != nil {
		return changed, Plan{}, err
	}
	plan, planErr := MakePlan(i.options.ConfDir, settings.Method, stage)
	files, err := Apply(i.options.ConfDir, plan)
	changed = append(changed, files...)
	err = errors.Join(planErr, err, linkErr)
	return changed, plan, errors.Join(err, i.report(plan, err))
}

// settings are those of the cluster with the command line's on top, and the salt, which must be known before anything
// is written: MACs would change with it.
func (i *Installer) settings(ctx context.Context) (Settings, error) {
	settings, err := ReadSettings(i.options.SettingsDir)
	if err != nil {
		return settings, err
	}
	if i.options.Method != "" {
		settings.Method = i.options.Method
	}
	if i.options.MACSalt != nil {
		settings.MACSalt = i.options.MACSalt
	}
	settings.Stage.StateDir = i.options.StateDir
	if settings.MACSalt != nil {
		settings.Stage.MACSalt = *settings.MACSalt
		return settings, nil
	}
	if i.salt == "" && settings.Method != MethodOff {
		if i.salt, err = i.options.API.ClusterID(ctx); err != nil {
			return settings, fmt.Errorf("the salt of derived MACs: %w", err)
		}
	}
	settings.Stage.MACSalt = i.salt
	return settings, nil
}

// Status is what the installer says about the node, in the file status of the state directory.
type Status struct {
	Method Method `json:"method,omitempty"`
	Reason string `json:"reason,omitempty"` // why it is not installed
}

func (i *Installer) report(plan Plan, failure error) error {
	status := Status{Method: plan.Method}
	if failure != nil {
		status = Status{Reason: failure.Error()}
	}
	data, err := json.Marshal(status)
	if err != nil {
		return fmt.Errorf("encoding the status: %w", err)
	}
	if err := os.MkdirAll(i.options.StateDir, 0o700); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	_, err = replaceState(filepath.Join(i.options.StateDir, "status"), data)
	return err
}

func replaceState(path string, content []byte) (bool, error) {
	now, err := os.ReadFile(path)
	if err == nil && string(now) == string(content) {
		return false, nil
	}
	return true, atomicfile.Write(path, content, 0o600)
}

// Check returns an error unless the last look at the node found it installed. It changes nothing.
func Check(stateDir string) error {
	data, err := os.ReadFile(filepath.Join(stateDir, "status"))
	if err != nil {
		return fmt.Errorf("not installed: %w", err)
	}
	var status Status
	if err := json.Unmarshal(data, &status); err != nil {
		return fmt.Errorf("not installed: %w", err)
	}
	if status.Reason != "" {
		return fmt.Errorf("not installed: %s", status.Reason)
	}
	return nil
}

// fighting notes a repair and says whether there were too many lately.
func (i *Installer) fighting(repaired bool, now time.Time) bool {
	if !repaired {
		return false
	}
	i.repairs = append(i.repairs, now)
	for len(i.repairs) > 0 && now.Sub(i.repairs[0]) > fightWindow {
		i.repairs = i.repairs[1:]
	}
	return len(i.repairs) > fightLimit
}

// watch looks at the directories that exist, and says whether there is a new one. A directory that comes later shows up
// in its parent.
func (i *Installer) watch(ctx context.Context, watcher *fsnotify.Watcher, plan Plan) (more bool) {
	watched := watcher.WatchList()
	dirs := []string{i.options.ConfDir, i.options.BinDir}
	if i.options.SettingsDir != "" {
		dirs = append(dirs, i.options.SettingsDir)
	}
	for name := range plan.Write {
		dirs = append(dirs, filepath.Dir(filepath.Join(i.options.ConfDir, name)))
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil || slices.Contains(watched, dir) {
			continue
		}
		if err := watcher.Add(dir); err != nil {
			klog.FromContext(ctx).Info("Not watched; the node is looked at every minute", "dir", dir, "err", err)
			continue
		}
		more = true
	}
	return more
}

// wait returns a moment after the first event, or after the pause, or with an error when the context ended. The pause of
// a fight is not cut short.
func wait(ctx context.Context, watcher *fsnotify.Watcher, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	settling := pause == fightPause
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case _, ok := <-watcher.Events:
			if !ok {
				return errors.New("the watcher ended")
			}
		case _, ok := <-watcher.Errors: // an overflow: look again
			if !ok {
				return errors.New("the watcher ended")
			}
		}
		if !settling {
			settling = true
			timer.Reset(settle)
		}
	}
}
