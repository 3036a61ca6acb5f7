// Package job is what the runner on the host and the init in the guest tell each other: places in the guest's root file
// system, the meaning of its serial ports, and the program to run.
package job

// Places in the guest, without the leading slash, as they stand in the archive.
const (
	File        = "job.json"
	Program     = "test/program" // its directory is the working directory
	Modprobe    = "sbin/modprobe"
	ModuleDir   = "modules"
	ModuleIndex = "modules/index.json"
)

// Serial ports. The program's output has one of its own, so that messages of the kernel never come between.
const (
	ConsolePort = "ttyS0"
	OutputPort  = "ttyS1"
	ResultPort  = "ttyS2" // one Result in JSON
)

// Job is a program to run.
type Job struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
}

// Result says how it ended. Without one the guest died before the program did.
type Result struct {
	ExitCode int    `json:"exitCode"`
	Failure  string `json:"failure,omitempty"` // why the program could not be run
}

// Module is a kernel module in the archive.
type Module struct {
	Name    string   `json:"name"`
	Needs   []string `json:"needs,omitempty"`
	Aliases []string `json:"aliases,omitempty"` // patterns of path.Match
}
