# What the Vagrantfile does beyond declaring machines.
#
# Owns: reading the settings, and what machines need of each other: the token to join with, and the demonstration.
# Invariants: a machine is only ever asked through a connection of our own, since with libvirt another thread is working
# on it at the same time; everything may be done again (`vagrant provision`); nothing is kept on this computer, a token
# goes from the first machine to the one that joins and lives for ten minutes.

require "shellwords"

module PodlaneVagrant
  class Error < Vagrant::Errors::VagrantError
    def initialize(message)
      @said = message
      super()
    end

    def error_message
      @said
    end
  end

  # The settings, checked. All paths are on this computer, but for the second of each of `files`.
  class Plan
    FOLDER = "/var/tmp/podlane" # on the machines; /tmp is emptied when they boot
    SCRIPTS = "#{FOLDER}/scripts"
    FAILED = "#{FOLDER}/failed" # is there when a step failed: token.sh tells those who wait for this machine
    DRIVERS = %w[kvm qemu].freeze

    attr_reader :box, :driver, :memory, :cpus, :machines

    def initialize(settings, boxes, root:)
      @settings = settings
      @root = root
      kind = choice("BOX", boxes.keys)
      @driver = choice("DRIVER", DRIVERS)
      @box = settings["BOX_NAME"].empty? ? boxes[kind] : settings["BOX_NAME"]
      @memory = number("MEMORY", 1024, 1_048_576)
      @cpus = number("CPUS", 1, 256)
      @machines = addresses(number("MACHINES", 1, 100))
    end

    def first
      @machines.keys.first
    end

    def emulated
      @driver == "qemu"
    end

    def bundle
      return @settings["BUNDLE"] unless @settings["BUNDLE"].empty?

      Dir[File.join(@root, "dist", "podlane-*.run")].max_by { |path| File.mtime(path) } || ""
    end

    # What is copied to each machine: from => to. What is missing is left to check_files, so that the rest can be used.
    def files
      {
        bundle => "#{FOLDER}/podlane.run",
        @settings["BUSYBOX"] => "#{FOLDER}/busybox",
        File.join(@root, "docs", "examples") => "#{FOLDER}/examples",
        File.join(__dir__, "scripts") => SCRIPTS,
      }.select { |from, _| !from.empty? && File.exist?(from) }
    end

    def check_files
      raise Error, "podlane: no dist/podlane-*.run: make it with ./appliance bundle, or name one with " \
                   "PODLANE_VAGRANT_BUNDLE" if bundle.empty?

      %w[BUNDLE BUSYBOX].each do |name|
        path = @settings[name]
        refuse(name, "a file", path) unless path.empty? || File.file?(path)
      end
    end

    # What a machine does while it is made: name of the step => command.
    def steps(name)
      mode = @settings["BOX"] == "atomic" ? "readonly" : "writable"
      steps = { "prepare" => step("prepare.sh #{mode} #{Shellwords.escape(@settings['DOCKER_REPO'])}") }
      steps["server"] = step("server.sh #{name} #{@machines[name]}") if name == first
      steps
    end

    private

    def step(command)
      "rm -f #{FAILED}; sh #{SCRIPTS}/#{command} || { touch #{FAILED}; exit 1; }"
    end

    def addresses(count)
      network = @settings["NETWORK"]
      parts = network.split(".", -1)
      fits = parts.size == 3 && parts.all? { |part| part =~ /\A\d{1,3}\z/ && part.to_i < 256 }
      refuse("NETWORK", "three numbers such as 192.168.56", network) unless fits
      (1..count).to_h { |n| ["node#{n}", "#{network}.#{10 + n}"] }
    end

    def choice(name, words)
      word = @settings[name]
      refuse(name, "one of #{words.join(', ')}", word) unless words.include?(word)
      word
    end

    def number(name, least, most)
      text = @settings[name].to_s
      fits = text =~ /\A\d+\z/ && text.to_i.between?(least, most)
      refuse(name, "a number from #{least} to #{most}", text) unless fits
      text.to_i
    end

    def refuse(name, expected, got)
      raise Error, "podlane: PODLANE_VAGRANT_#{name}: expected #{expected}, got \"#{got}\""
    end
  end

  # The machines as one cluster; `machines` is name => address. `wait` is for tests.
  class Cluster
    SCRIPTS = Plan::SCRIPTS
    TO_BEGIN = 120 # seconds until the first machine must at least be there
    TO_SERVE = 1200 # and until it must be a server: packages may have to be fetched
    INCOMPLETE = 3 # the demonstration's exit code while machines are missing
    BROKEN = 4 # token.sh's, when the first machine's installation failed

    def initialize(machines, wait: ->(seconds) { sleep(seconds) })
      @machines = machines
      @first = machines.keys.first
      @wait = wait
    end

    def after_up(env, up)
      join(env, up) unless up.name.to_s == @first
      demonstrate(env, up)
    end

    private

    # A member already is only upgraded: for that the first machine may be down.
    def join(env, up)
      member, = output(up, "test -e /etc/podlane/install.json")
      token = member.zero? ? "" : token_for(env, up)
      shell(up, "PODLANE_TOKEN=#{token} sh #{SCRIPTS}/join.sh #{up.name} #{@machines[@first]}", up.ui)
    end

    # A token for this machine alone, from the first, which may still be on its way.
    def token_for(env, up)
      up.ui.info("waiting for #{@first} to admit it")
      waited = 0
      server = nil # one connection, however long it takes
      loop do
        server ||= connection(env, up, @first)
        if server
          code, token = output(server, "sh #{SCRIPTS}/token.sh #{up.name}")
          return token if code.zero? && !token.empty?
          raise Error, "podlane: #{up.name} cannot join: #{@first}'s installation failed, see above" if code == BROKEN
        end
        late = server ? waited >= TO_SERVE : waited >= TO_BEGIN
        raise Error, "podlane: #{up.name} cannot join: #{@first} is not up; vagrant up #{@first}" if late

        @wait.call(5)
        waited += 5
      end
    end

    # Shows it when the last machine has joined; until then it says what is missing.
    def demonstrate(env, up)
      first = connection(env, up, @first) or return
      show = "sh #{SCRIPTS}/demo.sh #{@machines.size} #{up.name}"
      code = first.communicate.sudo(show, error_check: false) do |_, data|
        up.ui.info(data.chomp)
      end
      return if code == INCOMPLETE
      raise Error, "podlane: the demonstration failed, see above" unless code.zero?

      _, address = output(first, "sh #{SCRIPTS}/demo.sh address")
      @machines.each_key do |name|
        machine = connection(env, up, name) or next
        shell(machine, "sh #{SCRIPTS}/ask.sh #{name} #{address}", up.ui)
      end
    end

    # The machine, if it can be logged in to. Never the object that another thread works with.
    def connection(env, up, name)
      return up if up.name.to_s == name

      machine = env.machine(name.to_sym, up.provider_name, true)
      machine if machine.state.id == :running && machine.communicate.ready?
    rescue Vagrant::Errors::VagrantError
      nil # being made at this moment
    end

    # Exit code and what it printed.
    def output(machine, command)
      printed = +""
      code = machine.communicate.sudo(command, error_check: false) { |type, data| printed << data if type == :stdout }
      [code, printed.strip]
    end

    def shell(machine, command, ui)
      code = machine.communicate.sudo(command, error_check: false) { |_, data| ui.info(data.chomp) }
      raise Error, "podlane: on #{machine.name}: #{command[/\w+\.sh/]} failed, see above" unless code.zero?
    end
  end
end
